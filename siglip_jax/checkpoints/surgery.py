"""Changes to a checkpoint: resolution, patch size, text length, dtype and labels.

Each preserves the outputs as far as possible and describes itself in a sentence. New values are computed in float64 and
stored in the dtype of the old ones.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
from jax.typing import DTypeLike

from siglip_jax._bicubic import bicubic_matrix
from siglip_jax._checks import check_choice
from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.keymap import TEXT, VISION
from siglip_jax.checkpoints.mapped import release
from siglip_jax.configs.configuration import SiglipConfig, SiglipTextConfig, SiglipVisionConfig
from siglip_jax.configs.towers import tower_config
from siglip_jax.params import LazyArray, flatten, unflatten

INTERPOLATIONS = ("bicubic", "big_vision")
_IMAGE_POSITIONS = "vision_model/embeddings/position_embedding/embedding"
_TEXT_POSITIONS = "text_model/embeddings/position_embedding/embedding"
_PATCHES = "vision_model/embeddings/patch_embedding/kernel"


class Changed(NamedTuple):
    """A changed checkpoint.

    Attributes:
      checkpoint: changed configuration and parameters.
      said: description of the change, one sentence.
    """

    checkpoint: Checkpoint
    said: str


def with_resolution(checkpoint: Checkpoint, image_size: int, rule: str = "bicubic") -> Changed:
    """Resizes the position table for images of another size.

    Args:
      checkpoint: checkpoint with an image tower of fixed resolution.
      image_size: new height and width of an image in pixels.
      rule: interpolation: "bicubic", as `interpolate_pos_encoding` of the reference, or "big_vision", as big_vision's
        loader interpolates: linearly between the corners (`scipy.ndimage.zoom` of order 1).

    Returns:
      The changed checkpoint and a description of the change.

    Raises:
      ValueError: if there is no image tower of fixed resolution, or the rule is unknown.
    """
    vision = _vision(checkpoint)
    check_choice("rule", rule, INTERPOLATIONS)
    changed = vision.replace(image_size=image_size)
    old, new = (math.isqrt(c.num_patches) for c in (vision, changed))
    params = flatten(checkpoint.params)
    params[_IMAGE_POSITIONS] = _resized_positions(np.asarray(params[_IMAGE_POSITIONS]), old, new, rule)
    said = f"position table {old} x {old} resized to {new} x {new} ({rule}) for images of {image_size} pixels"
    return Changed(_replaced(checkpoint, params, vision_config=changed), said)


def with_patch_size(checkpoint: Checkpoint, patch_size: int) -> Changed:
    """Resizes the patch embedding so that a resized patch has the same embedding.

    The number of patches is unchanged, so the image size changes with the patch size.

    Source: FlexiViT, arXiv 2212.08013, section 3.4.

    Args:
      checkpoint: checkpoint with an image tower of fixed resolution.
      patch_size: new height and width of a patch in pixels.

    Returns:
      The changed checkpoint and a description of the change.

    Raises:
      ValueError: if there is no image tower of fixed resolution.
    """
    vision = _vision(checkpoint)
    old, side = vision.patch_size, math.isqrt(vision.num_patches)
    changed = vision.replace(patch_size=patch_size, image_size=side * patch_size)
    params = flatten(checkpoint.params)
    kernel = np.asarray(params[_PATCHES])
    one = _bilinear_matrix(old, patch_size)
    # The pseudo-inverse of a Kronecker product is the product of the pseudo-inverses, so the axes are separable.
    inverse = np.linalg.pinv(one.T)
    new = np.einsum("oi,pj,ijcd->opcd", inverse, inverse, kernel.astype(np.float64), optimize=True)
    params[_PATCHES] = new.astype(kernel.dtype)
    said = f"patches of {old} pixels resized to {patch_size} by the pseudo-inverse; images are {changed.image_size} now"
    return Changed(_replaced(checkpoint, params, vision_config=changed), said)


def with_text_length(checkpoint: Checkpoint, length: int) -> Changed:
    """Shortens or lengthens the table of text positions.

    The last row remains the last, since the embedding is taken from the last position. New rows interpolate between the
    last two; a lengthened model needs fine-tuning.

    Args:
      checkpoint: checkpoint with a text tower.
      length: new length of a text in tokens, at least 2.

    Returns:
      The changed checkpoint and a description of the change.

    Raises:
      ValueError: if there is no text tower, or the length is below 2.
    """
    config: Any = checkpoint.config
    text = tower_config(config, TEXT)
    if not isinstance(text, SiglipTextConfig):
        raise ValueError(f"the checkpoint must have a text tower to change its length, got a {checkpoint.architecture}")
    if length < 2:
        raise ValueError(f"the text length must be at least 2, got {length}")
    params = flatten(checkpoint.params)
    table = np.asarray(params[_TEXT_POSITIONS])
    old = len(table)
    if length <= old:
        rows = np.concatenate([table[: length - 1], table[-1:]])
        said = f"text positions shortened from {old} to {length}: the first {length - 1} and the last"
    else:
        share = np.linspace(0, 1, length - old + 2, dtype=np.float64)[1:, None]
        before, last = table[-2:-1].astype(np.float64), table[-1:].astype(np.float64)
        between = ((1 - share) * before + share * last).astype(table.dtype)
        rows = np.concatenate([table[:-1], between[:-1], table[-1:]])
        said = f"text positions lengthened from {old} to {length}: the model needs fine-tuning"
    params[_TEXT_POSITIONS] = rows
    return Changed(_replaced(checkpoint, params, text_config=text.replace(max_position_embeddings=length)), said)


def with_dtype(checkpoint: Checkpoint, dtype: DTypeLike) -> Changed:
    """Converts every parameter except `logit_scale` and `logit_bias`, which keep their dtype.

    Each parameter is converted on access, so that one at a time is in memory.

    Args:
      checkpoint: any float checkpoint.
      dtype: new dtype of the parameters.

    Returns:
      The changed checkpoint, whose converted leaves are `LazyArray`s, and a description of the change.
    """
    kind = np.dtype(dtype)

    def converted(x: Any) -> LazyArray:
        def make() -> np.ndarray:
            out = np.asarray(x).astype(kind)
            release(x)
            return out

        return LazyArray(tuple(x.shape), kind, make)

    params = {
        path: np.asarray(x) if path in ("logit_scale", "logit_bias") else converted(x)
        for path, x in flatten(checkpoint.params).items()
    }
    return Changed(_replaced(checkpoint, params), f"parameters converted to {kind.name}")


def with_labels(checkpoint: Checkpoint, labels: list[str]) -> Changed:
    """Converts a whole model or an image classifier to an image classifier with a new last layer of zeros.

    Args:
      checkpoint: checkpoint of a whole model or of an image classifier.
      labels: names of the labels.

    Returns:
      The image classifier and a description of the change.

    Raises:
      ValueError: if the checkpoint is that of one tower, whose configuration has no place for labels.
    """
    config = checkpoint.config
    if not isinstance(config, SiglipConfig):
        raise ValueError(
            f"the checkpoint must be a whole model to become a classifier, got a {checkpoint.architecture}"
        )
    config = config.replace(id2label=dict(enumerate(labels)))
    params = {path: x for path, x in flatten(checkpoint.params).items() if path.startswith("vision_model/")}
    dtype = np.dtype(params[_IMAGE_POSITIONS].dtype)
    params["classifier/kernel"] = np.zeros((config.vision_config.hidden_size, len(labels)), dtype)
    params["classifier/bias"] = np.zeros(len(labels), dtype)
    family = checkpoint.architecture.removesuffix("ForImageClassification").removesuffix("Model")
    made = dataclasses.replace(
        checkpoint, config=config, params=unflatten(params), architecture=f"{family}ForImageClassification"
    )
    return Changed(made, f"a new classifier of {len(labels)} labels, all zeros")


def _vision(checkpoint: Checkpoint) -> SiglipVisionConfig:
    vision = tower_config(checkpoint.config, VISION)
    if not isinstance(vision, SiglipVisionConfig):
        raise ValueError(
            f"the checkpoint must have an image tower of fixed resolution, got a {checkpoint.architecture}"
        )
    return vision


def _replaced(checkpoint: Checkpoint, params: dict[str, Any], **towers: Any) -> Checkpoint:
    config = checkpoint.config
    if towers:
        config = config.replace(**towers) if isinstance(config, SiglipConfig) else next(iter(towers.values()))
    return dataclasses.replace(checkpoint, config=config, params=unflatten(params))


def _resized_positions(table: np.ndarray, old: int, new: int, rule: str) -> np.ndarray:
    square = table.astype(np.float64).reshape(old, old, -1)
    if rule == "big_vision":
        from scipy import ndimage

        resized = ndimage.zoom(square, (new / old, new / old, 1), order=1)
    else:
        matrix = bicubic_matrix(old, new)
        resized = np.einsum("oi,pj,ijd->opd", matrix, matrix, square, optimize=True)
    return resized.reshape(new * new, -1).astype(table.dtype)


def _bilinear_matrix(size: int, new_size: int) -> np.ndarray:
    """Returns the (new_size, size) matrix of a bilinear resize along one axis: half-pixel centres, no antialias."""
    centre = np.clip((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0, size - 1)
    left = np.minimum(np.floor(centre).astype(int), max(size - 2, 0))
    matrix = np.zeros((new_size, size))
    rows, share = np.arange(new_size), centre - left
    matrix[rows, left] += 1 - share
    matrix[rows, np.minimum(left + 1, size - 1)] += share
    return matrix
