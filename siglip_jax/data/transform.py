"""From an example to arrays of fixed shape: the image as the model's image processor resizes it, and token ids.

Pixels stay in eight bits, a quarter of the memory and of the way to the accelerator; `normalize_pixels` does there what
the image processor does last.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Array, Float32, UInt8

from siglip_jax._checks import check_choice
from siglip_jax.data.example import Example
from siglip_jax.processing import SiglipImageProcessorPil, SiglipProcessor
from siglip_jax.processing.images import pixels
from siglip_jax.processing.images.loading import load_image
from siglip_jax.processing.images.options import ImageOptions, checked

AUGMENTATIONS = ("none", "flip", "crop", "crop_flip")
MAX_PIXELS = 2**26  # of an image: 200 MB as RGB, for each that is decoded at a time
_ASPECTS = (3 / 4, 4 / 3)
_TRIES = 10


class Row(NamedTuple):
    """An example on its way into a batch.

    Attributes:
      pixels: the image, resized.
      text: the caption that was drawn; None where captions are not wanted.
      label: None where labels are not wanted.
    """

    pixels: UInt8[np.ndarray, "height width 3"]
    text: str | None
    label: int | None


class Transform:
    """Makes what the model takes of examples.

    Attributes:
      height, width: of the pixels.
      mean, std, rescale_factor: what `normalize_pixels` needs to finish the pixels as the image processor does.
    """

    def __init__(
        self,
        processor: SiglipProcessor,
        *,
        augment: str = "none",
        min_area: float = 0.5,
        captions: bool = True,
        labels: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Takes sizes, filter and tokenizer from a processor.

        Args:
          augment: "none"; "flip", a mirror image half of the time; "crop", a random part of the image, resized;
            "crop_flip", both.
          min_area: the least share of an image that a random part has.
          captions: whether captions are wanted: an example without one is then an error.
          labels: the same for labels.
          max_pixels: the most that an image may have.

        Raises:
          ValueError: for a processor whose images differ in size, or an option that is not understood.
        """
        check_choice("augment", augment, AUGMENTATIONS)
        if not 0 < min_area <= 1:
            raise ValueError(f"min_area: expected a share above 0 and up to 1, found {min_area}")
        if not isinstance(processor.image_processor, SiglipImageProcessorPil):
            kind = type(processor.image_processor).__name__
            raise ValueError(f"expected images of one size, found a {kind}: variable resolution cannot be trained here")
        self._options: ImageOptions = checked(processor.image_processor._options)
        self.height, self.width = _fixed_size(self._options)
        o = self._options
        self.mean, self.std = (
            ((0.0,) * 3, (1.0,) * 3) if o.image_mean is None else (_three(o.image_mean), _three(o.image_std))
        )
        self.rescale_factor = 1.0 if o.rescale_factor is None else o.rescale_factor
        self.augment, self.min_area, self.max_pixels = augment, min_area, max_pixels
        self.captions, self.labels = captions, labels
        self._processor = processor

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns `pixels` (height, width, 3) uint8, and as wanted `input_ids` (positions,) and `label` (), int32.

        Raises:
          ValueError: if the image cannot be read or is too large, or the caption or label is missing.
        """
        return {name: array[0] for name, array in self.stack([self.row(example, rng)]).items()}

    def row(self, example: Example, rng: np.random.Generator) -> Row:
        """Does the part of the work that is done for each example alone; raises what `__call__` raises."""
        text = label = None
        if self.captions:
            texts = [text for text in example.texts if text.strip()]
            if not texts:
                raise ValueError(f"{example.name}: no caption")
            text = texts[int(rng.integers(len(texts)))]
            if not text.isascii():
                _check_text(text, example.name)
        if self.labels:
            if example.label is None:
                raise ValueError(f"{example.name}: no label that is a number or the name of a known class")
            label = example.label
        return Row(self._pixels(example, rng), text, label)

    def stack(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """Returns the arrays of several rows, each with a leading axis; texts are encoded together, which is cheap."""
        arrays = {"pixels": np.stack([row.pixels for row in rows])}
        if self.captions:
            arrays["input_ids"] = self._processor(text=[row.text for row in rows])["input_ids"]
        if self.labels:
            arrays["label"] = np.array([row.label for row in rows], np.int32)
        return arrays

    def _pixels(self, example: Example, rng: np.random.Generator) -> UInt8[np.ndarray, "height width 3"]:
        if isinstance(example.image, np.ndarray):
            pil = PIL.Image.fromarray(example.image)
        else:
            try:
                pil = load_image(example.image, max_pixels=self.max_pixels)
            except ValueError as error:
                reason = str(error).removeprefix("bytes: ").partition("; raise max_")[0]
                raise ValueError(f"{example.name}: {reason}") from error
        pil = pixels.rgb_pil(pil)
        if "crop" in self.augment:
            pil = pil.crop(random_box(rng, pil.width, pil.height, self.min_area))
        o = self._options
        size = pixels.target_size(pil.height, pil.width, o.size or {})
        out = pixels.resize(pil, size, o.resample)
        if o.crop_size is not None:
            out = pixels.center_crop(out, *o.crop_size)
        return out[:, ::-1] if "flip" in self.augment and rng.random() < 0.5 else out


def random_box(rng: np.random.Generator, width: int, height: int, min_area: float) -> tuple[int, int, int, int]:
    """Returns left, top, right and bottom of a random part of an image.

    Its share of the area is uniform from `min_area` to 1, its aspect up to a third narrower or wider than a square; the
    whole image where no such part was found to fit, as in a very long one.
    """
    for _ in range(_TRIES):
        area = width * height * rng.uniform(min_area, 1.0)
        aspect = math.exp(rng.uniform(math.log(_ASPECTS[0]), math.log(_ASPECTS[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height


def normalize_pixels(
    pixels: UInt8[Array, "*batch height width 3"],
    mean: Sequence[float],
    std: Sequence[float],
    rescale_factor: float = 1 / 255,
) -> Float32[Array, "*batch height width 3"]:
    """Returns `(pixels * rescale_factor - mean) / std`; for use inside the training step.

    Within 1e-6 of the image processor, which multiplies by the factor in float64.
    """
    shape = (1,) * (pixels.ndim - 1) + (3,)
    means, deviations = (jnp.asarray(x, jnp.float32).reshape(shape) for x in (mean, std))
    return (pixels.astype(jnp.float32) * jnp.float32(rescale_factor) - means) / deviations


def _fixed_size(o: ImageOptions) -> tuple[int, int]:
    if o.size is None:
        raise ValueError("expected an image processor that resizes, found one with do_resize=False")
    if o.do_pad:
        raise ValueError("expected an image processor without padding, found do_pad=True")
    if o.crop_size is not None:
        return o.crop_size
    if set(o.size) != {"height", "width"}:
        raise ValueError(f"expected a size of height and width, or a crop_size, so that images stack; found {o.size}")
    return o.size["height"], o.size["width"]


def _three(value: float | tuple[float, ...] | None) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, tuple) else (float(value or 0.0),) * 3


def _check_text(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}: the caption is not text") from None
