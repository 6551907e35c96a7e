"""Converts an example to arrays of fixed shape: pixels resized as by the model's image processor, and token ids.

Pixels stay uint8, which takes a quarter of the memory and of the transfer to the accelerator; `normalize_pixels` does
the last step of the image processor there.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Array, Float32, UInt8

from siglip_jax._checks import check_choice
from siglip_jax._files import MAX_PIXELS
from siglip_jax.data.example import Example, image_id
from siglip_jax.data.regions import Region, region_arrays, regions_of
from siglip_jax.processing import SiglipImageProcessorPil, SiglipProcessor
from siglip_jax.processing.images import pixels
from siglip_jax.processing.images.base import ImageProcessor
from siglip_jax.processing.images.loading import load_image
from siglip_jax.processing.images.options import ImageOptions, checked

AUGMENTATIONS = ("none", "flip", "crop", "crop_flip")

_ASPECTS = (3 / 4, 4 / 3)
_TRIES = 10


class Row(NamedTuple):
    """A transformed example before it is stacked into a batch.

    Attributes:
      pixels: the resized image, (height, width, 3) uint8.
      text: one caption of the example, not tokenized yet; None without `captions`.
      label: index of the class; None without `labels`.
      image_id: hash of the image, equal for rows of the same image; None without `captions`.
      region: a box of the example with its caption; None without `boxes`, and where the example has none.
    """

    pixels: UInt8[np.ndarray, "height width 3"]
    text: str | None
    label: int | None
    image_id: int | None = None
    region: Region | None = None


class Transform:
    """Converts examples to the arrays that a model is trained on.

    Every example yields arrays of the same shape. The randomness of the caption and of the augmentation comes from the
    generator that is passed, so a `Pipeline` repeats it exactly.

    Attributes:
      height: height of the pixels.
      width: width of the pixels.
      mean: mean of each channel, after rescaling, for `normalize_pixels`.
      std: standard deviation of each channel, after rescaling, for `normalize_pixels`.
      rescale_factor: factor of the pixels, 1/255 in published processors, for `normalize_pixels`.

    Example:
      >>> from siglip_jax.assets import BUNDLED_MODEL, EXAMPLES
      >>> from siglip_jax.data import Example
      >>> from siglip_jax.processing import SiglipProcessor
      >>> transform = Transform(SiglipProcessor.from_pretrained(BUNDLED_MODEL), augment="flip")
      >>> image = (EXAMPLES / "horse.png").read_bytes()
      >>> arrays = transform(Example(image, ("a horse",), None, "horse.png"), np.random.default_rng(0))
      >>> {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
      {'pixels': ((64, 64, 3), 'uint8'), 'input_ids': ((16,), 'int32'), 'image_ids': ((), 'int32')}
    """

    def __init__(
        self,
        processor: SiglipProcessor,
        *,
        augment: str = "none",
        min_area: float = 0.5,
        captions: bool = True,
        labels: bool = False,
        boxes: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Takes image size, resampling filter and tokenizer from a processor.

        Args:
          processor: processor of the model, whose images have one fixed size.
          augment: "none"; "flip", which mirrors half of the images; "crop", which resizes a random part of each image;
            "crop_flip", which does both.
          min_area: smallest share of the area of an image that a random part has, above 0 and up to 1.
          captions: whether to return `input_ids` and `image_ids`; an example without a caption is then an error.
          labels: whether to return `label`; an example without a label is then an error.
          boxes: whether to return `region_ids` and `region_weights` of a random box of each example; the whole image is
            then seen, without augmentation.
          max_pixels: largest number of pixels of an image before it is resized.

        Raises:
          ValueError: if the images of the processor differ in size, or an argument is out of its range.
        """
        check_choice("augment", augment, AUGMENTATIONS)
        if not 0 < min_area <= 1:
            raise ValueError(f"min_area must be above 0 and up to 1, got {min_area}")
        self._options: ImageOptions
        self._take(processor.image_processor)
        crop = getattr(self._options, "crop_size", None)
        if boxes and (augment != "none" or not captions or crop is not None):
            raise ValueError(
                f"boxes need captions and whole images, got captions={captions}, augment={augment!r} and the crop"
                f" {crop} of the processor; leave out the boxes"
            )
        o = self._options
        mean, std = ((0.0,) * 3, (1.0,) * 3) if o.image_mean is None else (_three(o.image_mean), _three(o.image_std))
        self.mean, self.std = self._statistics(mean), self._statistics(std)
        self.rescale_factor = 1.0 if o.rescale_factor is None else o.rescale_factor
        self.augment, self.min_area, self.max_pixels = augment, min_area, max_pixels
        self.captions, self.labels, self.boxes = captions, labels, boxes
        self._processor = processor

    def _take(self, images: ImageProcessor) -> None:
        """Takes the options of an image processor."""
        if not isinstance(images, SiglipImageProcessorPil):
            kind = type(images).__name__
            raise ValueError(f"processor must make images of one size, got a {kind} of variable resolution")
        self._options = checked(images._options)
        self.height, self.width = _fixed_size(self._options)

    def _statistics(self, value: tuple[float, ...]) -> tuple[float, ...]:
        """Returns the mean or deviation of the channels as `normalize_pixels` takes it."""
        return value

    @property
    def pixels_per_image(self) -> int:
        """Number of pixels of an image in a batch."""
        return self.height * self.width

    def at(self, length: int | None) -> "Transform":
        """Returns the transform for a length of sequences, on which images of one size do not depend.

        Args:
          length: patches that each image is padded to; None: the processor's number.
        """
        return self

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Converts one example.

        Args:
          example: the example.
          rng: source of randomness for the choice of the caption and the box and for the augmentation.

        Returns:
          `pixels`, (height, width, 3) uint8; with `captions` `input_ids`, (positions,) int32, and `image_ids`, ()
          int32; with `labels` `label`, () int32; with `boxes` `region_ids`, (2, positions) int32, and `region_weights`,
          (2, positions) float32, see `region_arrays`.

        Raises:
          ValueError: if the image is unreadable or too large, or the caption or label is missing.
        """
        return {name: array[0] for name, array in self.stack([self.row(example, rng)]).items()}

    def row(self, example: Example, rng: np.random.Generator) -> Row:
        """Decodes and resizes the image of one example and chooses one of its captions.

        `row` and `stack` are the two halves of `__call__`: rows are made in parallel, then stacked.

        Args:
          example: the example.
          rng: source of randomness for the choice of the caption and the box and for the augmentation.

        Returns:
          The row for `stack`.

        Raises:
          ValueError: if the image is unreadable or too large, the caption or label is missing, or a box is invalid.
        """
        text = label = region = None
        if self.captions:
            texts = [text for text in example.texts if text.strip()]
            if not texts:
                raise ValueError(f"{example.name}: an example must have a caption, got none")
            text = texts[int(rng.integers(len(texts)))]
            if not text.isascii():
                _check_text(text, example.name)
        if self.labels:
            if example.label is None or example.label < 0:
                raise ValueError(f"{example.name}: an example must have a label, got no index or name of a class")
            label = example.label
        if self.boxes and (found := regions_of(example.boxes, example.box_captions, example.name)):
            region = found[int(rng.integers(len(found)))]
        number = self._image_id(example) if self.captions else None
        return Row(self._pixels(example, rng), text, label, number, region)

    def stack(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """Stacks rows to a batch and tokenizes their captions together, which is faster than one by one.

        Args:
          rows: rows that `row` returned, one or more.

        Returns:
          `pixels`, (rows, height, width, 3) uint8; with `captions` `input_ids`, (rows, positions) int32, and
          `image_ids`, (rows,) int32, equal for rows of the same image; with `labels` `label`, (rows,) int32; with
          `boxes` `region_ids` and `region_weights`, (rows, 2, positions).
        """
        arrays = self._images(rows)
        if self.captions:
            arrays["input_ids"] = self._processor(text=[row.text for row in rows], truncation=True)["input_ids"]
            low = np.array([(row.image_id or 0) & 0xFFFFFFFF for row in rows], np.uint32)
            arrays["image_ids"] = low.view(np.int32)
        if self.boxes:
            regions = [row.region for row in rows]
            arrays |= region_arrays(self._processor.tokenizer, regions, arrays["input_ids"].shape[1])
        if self.labels:
            arrays["label"] = np.array([row.label for row in rows], np.int32)
        return arrays

    def _image_id(self, example: Example) -> int:
        return image_id(example.image)

    def _pixels(self, example: Example, rng: np.random.Generator) -> UInt8[np.ndarray, "height width 3"]:
        try:
            loaded = load_image(example.image, max_pixels=self.max_pixels)
        except ValueError as error:
            reason = str(error).removeprefix("bytes: ").partition("; raise max_")[0]
            raise ValueError(f"{example.name}: {reason}") from error
        pil = pixels.rgb_pil(loaded)
        if "crop" in self.augment:
            pil = pil.crop(random_box(rng, pil.width, pil.height, self.min_area))
        out = self._resized(pil)
        return out[:, ::-1] if "flip" in self.augment and rng.random() < 0.5 else out

    def _resized(self, image: PIL.Image.Image) -> UInt8[np.ndarray, "height width 3"]:
        """Returns the pixels of an RGB image in the size of the model's images."""
        o = self._options
        out = pixels.resize(image, pixels.target_size(image.height, image.width, o.size or {}), o.resample)
        return out if o.crop_size is None else pixels.center_crop(out, *o.crop_size)

    def _images(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """Returns the arrays of the images of a batch."""
        return {"pixels": np.stack([row.pixels for row in rows])}


def random_box(rng: np.random.Generator, width: int, height: int, min_area: float) -> tuple[int, int, int, int]:
    """Returns left, top, right and bottom of a random part of an image, in pixels.

    The share of the area is uniform from `min_area` to 1, and the ratio of width to height log-uniform from 3/4 to 4/3.
    If none of ten such parts fits, as in a very long image, the part is the whole image.

    Args:
      rng: source of randomness.
      width: width of the image in pixels.
      height: height of the image in pixels.
      min_area: smallest share of the area of the image.
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
    pixels: UInt8[Array, "*batch values"],
    mean: Sequence[float],
    std: Sequence[float],
    rescale_factor: float = 1 / 255,
) -> Float32[Array, "*batch values"]:
    """Returns `(pixels * rescale_factor - mean) / std`, inside the training step.

    The result is within 1e-6 of the image processor's, which multiplies by the factor in float64.

    Args:
      pixels: RGB pixels, (..., height, width, 3) uint8, or patches, (..., patches, values) uint8.
      mean: mean after rescaling of each channel, or of each value of a patch.
      std: standard deviation after rescaling of each channel, or of each value of a patch.
      rescale_factor: factor of the pixels.

    Returns:
      Normalised pixels, float32, in the shape of `pixels`.
    """
    shape = (1,) * (pixels.ndim - 1) + (len(mean),)
    means, deviations = (jnp.asarray(x, jnp.float32).reshape(shape) for x in (mean, std))
    return (pixels.astype(jnp.float32) * jnp.float32(rescale_factor) - means) / deviations


def _fixed_size(o: ImageOptions) -> tuple[int, int]:
    if o.size is None:
        raise ValueError("the image processor must resize, got do_resize=False")
    if o.do_pad:
        raise ValueError("the image processor must not pad, got do_pad=True")
    if o.crop_size is not None:
        return o.crop_size
    if set(o.size) != {"height", "width"}:
        raise ValueError(f"size must have height and width, or crop_size be set, so that images stack, got {o.size}")
    return o.size["height"], o.size["width"]


def _three(value: float | tuple[float, ...] | None) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, tuple) else (float(value or 0.0),) * 3


def _check_text(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}: a caption must be text of valid Unicode, got a lone surrogate") from None
