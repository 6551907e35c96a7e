"""Zero-shot classification of embeddings: each image gets the class whose mean prompt embedding is nearest."""

import numpy as np
from jaxtyping import Float, Int

from siglip_jax.evaluation.neighbours import nearest_keys


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
