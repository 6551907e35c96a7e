"""Comparison with published logits: whether weights, tokenizer and processor together reproduce the released model.

The images of the variable-resolution models are drawn here. The others need the published file, or its `pixel_values`
where the logits were computed with another resizing than the reference's.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageDraw
from jaxtyping import Float

from siglip_jax.configs.published import DISC_SIZES, Answer
from siglip_jax.inference.engine import Siglip
from siglip_jax.processing.images.siglip2 import Siglip2ImageProcessor, grid_of


class Comparison(NamedTuple):
    """The logits or probabilities of a model beside the published ones.

    Attributes:
      answer: the published values, with their images, texts and tolerance.
      found: values that the model computes, (images, texts) float64; logits or probabilities, by `answer.kind`.
    """

    answer: Answer
    found: Float[np.ndarray, "images texts"]

    @property
    def expected(self) -> Float[np.ndarray, "images texts"]:
        """The published values, (images, texts) float64."""
        return np.array(self.answer.values)

    @property
    def error(self) -> float:
        """The largest absolute difference; NaN if the model computes NaN."""
        return float(np.max(np.abs(self.found - self.expected)))

    @property
    def right(self) -> bool:
        """Whether the error is within the published tolerance."""
        return self.error <= self.answer.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Returns the comparison as a dictionary that JSON can hold; NaN and infinity become None."""
        answer, found = self.answer, self.found
        return {
            "kind": answer.kind,
            "images": list(answer.images),
            "texts": list(answer.texts),
            "found": [[x if math.isfinite(x) else None for x in row] for row in found.tolist()],  # JSON has no NaN
            "published": self.expected.tolist(),
            "error": self.error if math.isfinite(self.error) else None,
            "tolerance": answer.tolerance,
            "source": answer.source,
        }


def compare(siglip: Siglip, answer: Answer, given: Any = None) -> Comparison:
    """Computes a published answer with a model, with matrix products at the highest precision of the device.

    Args:
      siglip: model to compare.
      answer: published values with their texts and images.
      given: the images, by `answer.given`. "drawn": None; "image": a sequence of sources for `load_image`; "pixels":
        `pixel_values`, (images, height, width, channels) or (images, channels, height, width) floats.

    Returns:
      The computed values beside the published ones.

    Raises:
      ValueError: if the number of images or the shape of the pixels does not match the answer.
    """
    inputs = dict(siglip.processor(text=list(answer.texts), return_tensors="jax"))
    inputs |= _drawn(siglip) if answer.given == "drawn" else _given(siglip, answer, given)
    with jax.default_matmul_precision("highest"):
        out: Any = jax.jit(siglip.model.apply)({"params": siglip.params}, **inputs)
    logits = np.asarray(out.logits_per_image, np.float64)
    return Comparison(answer, logits if answer.kind == "logits" else 1 / (1 + np.exp(-logits)))


def disc(width: int, height: int) -> PIL.Image.Image:
    """Returns the image that `published.DISC` describes, `width` x `height` pixels."""
    image = PIL.Image.new("RGB", (width, height), "red")
    x, y = width // 2, height // 2
    radius = min(x, y) // 8 * 7
    box = (x - radius, y - radius, x + radius, y + radius)
    PIL.ImageDraw.Draw(image).ellipse(box, fill="blue", outline="green", width=width // 20)
    return image


def _drawn(siglip: Siglip) -> dict[str, Any]:
    """Returns the image inputs of the drawn discs."""
    processor = siglip.processor.image_processor
    if not isinstance(processor, Siglip2ImageProcessor):
        raise ValueError(f"the image processor must be a Siglip2ImageProcessor, got a {processor.file_type}")
    patch, most = processor.patch_size, processor.max_num_patches
    images = [_resized(disc(*size), patch, most) for size in DISC_SIZES]
    return dict(processor(images, do_resize=False, return_tensors="jax"))


def _resized(image: PIL.Image.Image, patch: int, most: int) -> np.ndarray:
    """Returns an image resized in floating point and rounded once, as for the published pixels; Pillow rounds twice."""
    rows, columns = grid_of(image.height, image.width, patch, most)
    size = (rows * patch, columns * patch, 3)
    resized = jax.image.resize(jnp.asarray(np.asarray(image, np.float32)), size, "bilinear", antialias=True)
    return np.asarray(jnp.clip(jnp.round(resized), 0, 255)).astype(np.uint8)


def _given(siglip: Siglip, answer: Answer, given: Any) -> dict[str, Any]:
    """Returns the image inputs of image files or of pixel values."""
    if answer.given == "image":
        images: Sequence[Any] = list(given)
        if len(images) != len(answer.images):
            raise ValueError(f"images must be {len(answer.images)} ({', '.join(answer.images)}), got {len(images)}")
        return dict(siglip.processor(images=images, return_tensors="jax"))
    pixels, vision = np.asarray(given), siglip.config.vision_config
    if pixels.ndim == 4 and pixels.shape[1] == vision.num_channels:
        pixels = pixels.transpose(0, 2, 3, 1)
    expected = (len(answer.images), vision.image_size, vision.image_size, vision.num_channels)
    if pixels.shape != expected or not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(
            f"the pixel values of {' and '.join(answer.images)} must be floats of shape {expected}, got {pixels.dtype}"
            f" of shape {pixels.shape}"
        )
    return {"pixel_values": jnp.asarray(pixels, jnp.float32)}
