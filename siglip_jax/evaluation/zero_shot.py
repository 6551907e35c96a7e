"""Zero-shot classification of embeddings: each image gets the class whose mean prompt embedding is nearest."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from siglip_jax.evaluation.neighbours import check_finite, nearest_keys


def ensemble(
    text_embeds: Float[np.ndarray, "texts embed"], counts: Sequence[int]
) -> Float[np.ndarray, "classes embed"]:
    """Returns the L2-normalised mean of the L2-normalised prompt embeddings of each class.

    Args:
      text_embeds: embeddings of the prompts, (texts, E), class by class as from `prompts`.
      counts: number of prompts of each class, 1 or more.

    Returns:
      Embeddings of the classes, (classes, E) float32.

    Raises:
      ValueError: if the counts do not sum to the number of embeddings, or an embedding is not finite.
    """
    if not len(counts) or min(counts) < 1 or sum(counts) != len(text_embeds):
        raise ValueError(
            f"text embeddings must be {list(counts)[:5]} for the classes, {sum(counts)} in all, got {len(text_embeds)}"
        )
    check_finite(text_embeds, "text embeddings")
    starts = np.cumsum([0, *counts[:-1]])
    sums = np.add.reduceat(_normalized(text_embeds.astype(np.float64)), starts, axis=0)
    return _normalized(sums).astype(np.float32)


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
