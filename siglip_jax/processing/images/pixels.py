"""Pure functions of image arrays on the host: conversion to RGB and uint8, resizing, cropping, padding, normalisation.

Mirrors the PIL side of `transformers.image_transforms` bit for bit: Pillow's resize rounds to uint8, values are
rescaled in float64 and normalised in float32. All arrays are HWC.
"""

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float32, Shaped, UInt8

CHANNELS = (1, 3, 4)
Pixels = Shaped[np.ndarray, "_height _width _channel"]  # the underscores let sizes differ between arguments


def channels_last(
    image: Shaped[np.ndarray, "..."], input_data_format: str | None = None, *, prefer: str | None = None
) -> Pixels:
    """Returns one image as HWC.

    Two axes are height and width (the reference rejects such images).

    Args:
      image: an array HW, HWC or CHW.
      input_data_format: "channels_first" or "channels_last"; None: an axis of 1, 3 or 4 holds the channels.
      prefer: layout of an image whose first and last axis may both hold the channels; None: "channels_first" with a
        warning, as in the reference.

    Raises:
      ValueError: if the shape is not that of an image, or the axis of the channels is unclear.
    """
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(f"image must be a non-empty array HW, HWC or CHW, got the shape {image.shape}")
    if image.ndim == 2:
        return image[:, :, None]
    if input_data_format is None:
        first, last = image.shape[0] in CHANNELS, image.shape[2] in CHANNELS
        if first and last:
            if prefer is None:
                warnings.warn(
                    f"image of shape {image.shape} may have its channels on the first or the last axis and is read with"
                    " the first; pass input_data_format='channels_first' or 'channels_last'",
                    stacklevel=2,
                )
            input_data_format = prefer or "channels_first"
        elif first or last:
            input_data_format = "channels_first" if first else "channels_last"
        else:
            raise ValueError(
                f"image must have 1, 3 or 4 channels on the first or last axis, got the shape {image.shape}; "
                "pass input_data_format"
            )
    return np.moveaxis(image, 0, -1) if input_data_format == "channels_first" else image


def rgb_pil(image: PIL.Image.Image) -> PIL.Image.Image:
    """Returns the image in RGB, composited over white if it has transparency."""
    if image.mode in ("RGBa", "La"):  # premultiplied alpha, which Pillow only undoes this way
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = PIL.Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def rgb_array(image: Pixels) -> Pixels:
    """Returns the image with three channels: one channel is repeated, RGBA is composited over white.

    Raises:
      ValueError: for float RGBA outside [0, 1].
    """
    if image.shape[-1] == 1:
        return np.repeat(image, 3, axis=-1)
    if image.shape[-1] != 4:
        return image
    integer = np.issubdtype(image.dtype, np.integer)
    if not integer and (image.min() < 0.0 or image.max() > 1.0):
        raise ValueError(f"image must be in [0, 1] if it is float RGBA, got {image.min()} to {image.max()}")
    white = 255 if integer else 1.0
    alpha = image[..., 3:4] / white
    mixed = alpha * image[..., :3] + (1 - alpha) * white
    return (np.round(mixed) if integer else mixed).astype(image.dtype)


def to_uint8(image: Pixels) -> tuple[UInt8[np.ndarray, "_height _width _channel"], bool]:
    """Returns the image as uint8, and whether it was float in [0, 1], so that the result must be divided by 255.

    Raises:
      ValueError: for whole numbers outside [0, 255], or fractions outside [0, 1].
    """
    if image.dtype == np.uint8:
        return image, False
    with np.errstate(invalid="ignore"):  # NaN raises an error below
        top = 255 if np.allclose(image, image.astype(int)) else 1
    if not (np.all(image >= 0) and np.all(image <= top)):
        kind = "whole numbers" if top == 255 else "fractions"
        raise ValueError(f"image must be in [0, {top}] if it has {kind}, got {image.min()} to {image.max()}")
    if top == 255:
        return image.astype(np.uint8), False
    return (image.astype(np.float64) * 255).astype(np.float32).astype(np.uint8), True


def _from_uint8(image: UInt8[np.ndarray, "_height _width _channel"]) -> PIL.Image.Image:
    """Returns the PIL image of a uint8 array."""
    return PIL.Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))


def resize(image: PIL.Image.Image | Pixels, size: tuple[int, int], resample: int) -> Pixels:
    """Resizes to (height, width) with Pillow; floats in [0, 1] return float32 in [0, 1], everything else uint8."""
    fraction = False
    if not isinstance(image, PIL.Image.Image):
        eight_bits, fraction = to_uint8(image)
        image = _from_uint8(eight_bits)
    height, width = size
    out = np.asarray(image.resize((width, height), PIL.Image.Resampling(resample)))
    out = out[:, :, None] if out.ndim == 2 else out
    return (out.astype(np.float64) * (1 / 255)).astype(np.float32) if fraction else out


def target_size(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """Returns the (height, width) to which an image is resized.

    Args:
      height: height of the image, in pixels.
      width: width of the image, in pixels.
      size: size by the reference's keys, such as "height" and "width", or "shortest_edge".

    Raises:
      ValueError: for keys that do not define a resize.
    """
    keys = set(size)
    if keys == {"height", "width"}:
        return size["height"], size["width"]
    if keys == {"shortest_edge"}:
        edge = size["shortest_edge"]
        if width <= height:
            return int(edge * height / width), edge
        return edge, int(edge * width / height)
    if keys == {"shortest_edge", "longest_edge"}:
        return _within(height, width, size["shortest_edge"], size["longest_edge"])
    if keys == {"max_height", "max_width"}:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return int(height * scale), int(width * scale)
    forms = "height and width, shortest_edge (and longest_edge), or max_height and max_width"
    raise ValueError(f"size must have the keys {forms}, got {dict(size)}")


def _within(height: int, width: int, edge: int, longest: int) -> tuple[int, int]:
    """Returns the (height, width) whose short side is `edge`, or less if the long side would exceed `longest`."""
    short, long = float(min(height, width)), float(max(height, width))
    exact = None
    if long / short * edge > longest:
        exact = longest * short / long
        edge = round(exact)
    if min(height, width) == edge:
        return height, width
    scale = edge if exact is None else exact
    return (int(scale * height / width), edge) if width < height else (edge, int(scale * width / height))


def center_crop(image: Pixels, height: int, width: int) -> Pixels:
    """Returns the centre of the image, with black margins where the image is smaller than the crop."""
    old_height, old_width = image.shape[:2]
    top, left = (old_height - height) // 2, (old_width - width) // 2
    canvas_height, canvas_width = max(height, old_height), max(width, old_width)
    if (canvas_height, canvas_width) != (old_height, old_width):
        above, before = math.ceil((canvas_height - old_height) / 2), math.ceil((canvas_width - old_width) / 2)
        canvas = np.zeros_like(image, shape=(canvas_height, canvas_width, image.shape[2]))
        canvas[above : above + old_height, before : before + old_width] = image
        image, top, left = canvas, top + above, left + before
    return image[max(0, top) : top + height, max(0, left) : left + width]


def pad(image: Pixels, height: int, width: int) -> Pixels:
    """Returns the image padded with zeros below and to the right.

    Raises:
      ValueError: if the image is larger than the padded size.
    """
    if image.shape[0] > height or image.shape[1] > width:
        raise ValueError(f"pad_size must be at least {image.shape[0]}x{image.shape[1]}, got {height}x{width}")
    return np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)))


def _per_channel(name: str, value: float | Sequence[float], channels: int, dtype: Any) -> np.ndarray:
    """Returns a statistic as an array of one number per channel."""
    values = [value] * channels if isinstance(value, (int, float)) else list(value)
    if len(values) != channels:
        raise ValueError(f"{name} must have {channels} numbers, one per channel, got {len(values)}")
    return np.array(values, dtype)


def normalize(
    image: Shaped[np.ndarray, "... channel"],
    rescale_factor: float | None,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
) -> Shaped[np.ndarray, "... channel"]:
    """Returns `(image * rescale_factor - mean) / std` in float32.

    Args:
      image: values with the channels on the last axis.
      rescale_factor: factor of the values; None: they are not rescaled.
      mean: mean, a number or one per channel; None: the image is not normalised. If `rescale_factor` is None too, the
        image is returned unchanged, in its dtype.
      std: standard deviation, a number or one per channel; None: the image is not normalised.

    Raises:
      ValueError: if `mean` or `std` does not have one number per channel.
    """
    if rescale_factor is None and mean is None:
        return image
    if image.dtype == np.uint8:
        key = tuple(v if v is None or isinstance(v, (int, float)) else tuple(v) for v in (mean, std))
        table = normalization_table(rescale_factor, *key, image.shape[-1])
        if (table == table[:1]).all():
            return table[0][image]
        return np.stack([row[image[..., i]] for i, row in enumerate(table)], axis=-1)
    if rescale_factor is not None:
        image = (image.astype(np.float64) * rescale_factor).astype(np.float32)
    if mean is not None and std is not None:
        image = image if np.issubdtype(image.dtype, np.floating) else image.astype(np.float32)
        layout = (image.shape[-1], image.dtype)
        image = (image - _per_channel("image_mean", mean, *layout)) / _per_channel("image_std", std, *layout)
    return image.astype(np.float32)


@functools.lru_cache(maxsize=64)
def normalization_table(
    rescale_factor: float | None, mean: Any, std: Any, channels: int
) -> Float32[np.ndarray, "channel 256"]:
    """Returns the result of `normalize` for each of the 256 values of each channel; `mean` and `std` are hashable."""
    every = np.repeat(np.arange(256, dtype=np.float32)[:, None], channels, axis=1)
    return normalize(every, rescale_factor, mean, std).T.copy()
