"""Images and arrays of any depth as PIL images of eight bits per channel.

The type decides the range, never the values: a grey image of 16 bits reaches from 0 to 65535 however dark it is.
"""

from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Shaped, UInt8

from siglip_jax.processing.images.inputs import as_array
from siglip_jax.processing.images.pixels import CHANNELS, channels_last

_BITS, _SIGN = 258, 339  # numbers of the TIFF tags BitsPerSample and SampleFormat


def is_deep(image: PIL.Image.Image) -> bool:
    """Returns whether the image has more than eight bits per channel; Pillow clips such images to 0 to 255."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def white_of(image: PIL.Image.Image) -> int:
    """Returns the value of white in a deep image: 1 for floats, else 65535 but for a TIFF of 12 bits or with a sign.

    Mode `I` has 32 bits in Pillow, which reads and writes PNG and PGM files of 16 bits in it.
    """
    if image.mode == "F":
        return 1
    tags = getattr(image, "tag_v2", {})
    bits, sign = (tuple(tags.get(tag, (0,)))[0] for tag in (_BITS, _SIGN))
    return {(12, 0): 4095, (12, 1): 4095, (16, 2): 32767}.get((bits, sign), 65535)


def eight_bits(image: PIL.Image.Image, white: int | None = None) -> PIL.Image.Image:
    """Returns the image with eight bits per channel: a deep image is scaled, any other is returned unchanged.

    Args:
      image: image of any mode.
      white: value of white in a deep image; None: `white_of(image)`.

    Raises:
      ValueError: if a value is negative or above white.
    """
    if not is_deep(image):
        return image
    scaled = PIL.Image.fromarray(_scaled(np.asarray(image), white or white_of(image), f"of mode {image.mode}"))
    key = image.info.get("transparency")  # the one value of a PNG that is transparent
    if isinstance(key, int):
        alpha = PIL.Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8))
        return PIL.Image.merge("LA", (scaled, alpha))
    return scaled


def pil_image(source: Any, input_data_format: str | None = None) -> PIL.Image.Image:
    """Returns the PIL image of an array.

    Args:
      source: array HW, HWC or CHW of any library. Floats are in [0, 1], bools black and white, uint16 in [0, 65535] and
        other integers in [0, 255].
      input_data_format: "channels_first" or "channels_last"; None: the axis of 1, 3 or 4 holds the channels, the last
        axis before the first.

    Raises:
      ValueError: if the shape is not that of an image, or a value is outside the range of its type.
    """
    array = channels_last(as_array(source), input_data_format, prefer="channels_last")
    kind = array.dtype.kind
    if kind not in "biuf" or array.shape[-1] not in CHANNELS:
        raise ValueError(
            "image must be an array of bools, integers or floats with 1, 3 or 4 channels, got"
            f" {array.dtype} with {array.shape[-1]}"
        )
    if kind == "b":
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype != np.uint8:
        white = 1 if kind == "f" else 65535 if array.dtype == np.uint16 else 255
        array = _scaled(array, white, f"of {array.dtype}")
    return PIL.Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[-1] == 1 else array))


def _scaled(array: Shaped[np.ndarray, "..."], white: int, kind: str) -> UInt8[np.ndarray, "..."]:
    """Returns values of 0 to white as 0 to 255; `kind` says in the error what the image is."""
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= white):  # NaN too
        raise ValueError(f"image {kind} must have values in [0, {white}], got {low:g} to {high:g}; scale them")
    if array.dtype.kind == "f":
        return np.rint(array.astype(np.float32) * np.float32(255)).astype(np.uint8)
    return np.rint(np.arange(white + 1) * (255 / white)).astype(np.uint8)[array]
