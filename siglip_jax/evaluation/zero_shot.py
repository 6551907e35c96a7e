"""Zero-shot classification of embeddings: a class is the mean of its sentences, an image gets the nearest."""

import numpy as np
from jaxtyping import Float, Int

from siglip_jax.evaluation.neighbours import check_finite, nearest_keys


def ensemble(text_embeds: Float[np.ndarray, "texts embed"], templates: int) -> Float[np.ndarray, "classes embed"]:
    """Returns the normalised mean of the normalised embeddings of each class.

    Args:
      text_embeds: of the sentences as `prompts` orders them, all of a class together.
      templates: how many belong to a class.

    Raises:
      ValueError: if they are no whole number of classes, or one is not finite.
    """
    if templates < 1 or not len(text_embeds) or len(text_embeds) % templates:
        raise ValueError(f"expected {templates} text embeddings for each class, found {len(text_embeds)} in all")
    check_finite(text_embeds, "text embeddings")
    embeds = _normalized(text_embeds.astype(np.float64)).reshape(-1, templates, text_embeds.shape[1])
    return _normalized(embeds.mean(axis=1)).astype(np.float32)


def classify(
    image_embeds: Float[np.ndarray, "images embed"], class_embeds: Float[np.ndarray, "classes embed"], top: int = 5
) -> Int[np.ndarray, "images top"]:
    """Returns the nearest classes of each image, nearest first, equally near ones in their order; -1: no more."""
    found = min(top, len(class_embeds))
    ranked = np.full((len(image_embeds), top), -1, np.int64)
    ranked[:, :found] = nearest_keys(image_embeds, class_embeds, found)[1]
    return ranked


def _normalized(embeds: Float[np.ndarray, "rows embed"]) -> Float[np.ndarray, "rows embed"]:
    return embeds / np.maximum(np.linalg.norm(embeds, axis=1, keepdims=True), 1e-12)
