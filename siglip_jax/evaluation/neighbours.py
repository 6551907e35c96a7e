"""Nearest neighbours among embeddings, and classification by their votes.

Votes can be weighted by exp(cosine / temperature), as in "Unsupervised Feature Learning via Non-Parametric Instance
Discrimination" (Wu et al., 2018) and "Emerging Properties in Self-Supervised Vision Transformers" (Caron et al., 2021).
"""

import numpy as np
from jaxtyping import Float, Int

from siglip_jax.search.nearest import BLOCK, nearest

VOTES = 2**22  # pairs of neighbours compared at once


def nearest_keys(
    queries: Float[np.ndarray, "n embed"], keys: Float[np.ndarray, "m embed"], k: int
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """Returns the k largest products of each query with the keys and the indices of their keys.

    Args:
      queries: embeddings (n, E) float32; for L2-normalised embeddings a product is a cosine.
      keys: embeddings (m, E) float32 to choose from.
      k: number of keys to find for each query, 1 to m.

    Returns:
      Products (n, k), largest first, and indices of keys (n, k); ties are broken by index.

    Raises:
      ValueError: if k is not from 1 to m, or an embedding is not finite.
    """
    if not 1 <= k <= len(keys):
        raise ValueError(f"k must be from 1 to {len(keys)}, the number of embeddings to choose from, got {k}")
    check_finite(queries, "queries")
    check_finite(keys, "keys")
    return nearest(queries, [keys], k, block_size=min(BLOCK, len(keys)))


def check_finite(embeds: Float[np.ndarray, "rows embed"], what: str) -> None:
    """Raises a `ValueError` for embeddings with NaN or infinity, with which every comparison is silently wrong.

    Args:
      embeds: embeddings, (rows, E).
      what: name of the embeddings, the subject of the message.

    Raises:
      ValueError: if a row has NaN or infinity; the message has the number of such rows.
    """
    bad = len(embeds) - int(np.isfinite(embeds).all(axis=1).sum())
    if bad:
        raise ValueError(f"{what} must be finite, got NaN or infinity in {bad} of {len(embeds)} rows")


def vote(
    similarities: Float[np.ndarray, "n k"],
    labels: Int[np.ndarray, "n k"],
    *,
    temperature: float | None = None,
    top: int = 5,
) -> Int[np.ndarray, "n top"]:
    """Returns the classes with the most votes of the neighbours.

    Args:
      similarities: cosines of the neighbours, (n, k), largest first.
      labels: classes of the neighbours, (n, k).
      temperature: each neighbour votes with weight exp(cosine / temperature); None: all weights are equal.
      top: number of classes to return.

    Returns:
      Classes, (n, top), most votes first, -1 where there are no more classes; ties are broken by the nearest neighbour.

    Raises:
      ValueError: if the temperature is not above 0.
    """
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature must be above 0, or None for equal votes, got {temperature!r}")
    ranked = np.full((len(labels), top), -1, np.int64)
    k = labels.shape[1]
    rows = max(1, VOTES // (k * k))
    for start in range(0, len(labels), rows):
        part, near = labels[start : start + rows], similarities[start : start + rows]
        weights = (
            np.ones(near.shape) if temperature is None else np.exp((near - near[:, :1]).astype(float) / temperature)
        )
        same = part[:, :, None] == part[:, None, :]
        total = (same * weights[:, None, :]).sum(axis=2)
        again = np.tril(same, -1).any(axis=2)  # a class counts at its first place
        order = np.argsort(np.where(again, np.inf, -total), axis=1, kind="stable")[:, :top]
        classes = np.where(np.take_along_axis(again, order, axis=1), -1, np.take_along_axis(part, order, axis=1))
        ranked[start : start + rows, : classes.shape[1]] = classes
    return ranked
