"""Zero-shot classification of embeddings: each image gets the class whose mean prompt embedding is nearest."""

import numpy as np
from jaxtyping import Float, Int

from siglip_jax.evaluation.neighbours import check_finite, nearest_keys


def ensemble(text_embeds: Float[np.ndarray, "texts embed"], templates: int) -> Float[np.ndarray, "classes embed"]:
    """Returns the L2-normalised mean of the L2-normalised prompt embeddings of each class.

    Args:
      text_embeds: embeddings of the prompts, (classes * templates, E), in the order of `prompts`.
      templates: number of prompts per class.

    Returns:
      Embeddings of the classes, (classes, E) float32.

    Raises:
      ValueError: if the number of embeddings is not a multiple of `templates`, or an embedding is not finite.
    """
    if templates < 1 or not len(text_embeds) or len(text_embeds) % templates:
        raise ValueError(f"text embeddings must be {templates} for each class, got {len(text_embeds)} in all")
    check_finite(text_embeds, "text embeddings")
    embeds = _normalized(text_embeds.astype(np.float64)).reshape(-1, templates, text_embeds.shape[1])
    return _normalized(embeds.mean(axis=1)).astype(np.float32)


def classify(
    image_embeds: Float[np.ndarray, "images embed"], class_embeds: Float[np.ndarray, "classes embed"], top: int = 5
) -> Int[np.ndarray, "images top"]:
    """Returns the nearest classes of each image.

    Args:
      image_embeds: L2-normalised embeddings of the images, (images, E).
      class_embeds: L2-normalised embeddings of the classes, (classes, E).
      top: number of classes to return for each image.

    Returns:
      Indices of classes, (images, top), nearest first, -1 where there are no more; ties are broken by index.
    """
    found = min(top, len(class_embeds))
    ranked = np.full((len(image_embeds), top), -1, np.int64)
    ranked[:, :found] = nearest_keys(image_embeds, class_embeds, found)[1]
    return ranked


def _normalized(embeds: Float[np.ndarray, "rows embed"]) -> Float[np.ndarray, "rows embed"]:
    return embeds / np.maximum(np.linalg.norm(embeds, axis=1, keepdims=True), 1e-12)
