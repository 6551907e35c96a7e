"""The nearest of many embeddings, block by block, and classification by the votes of the nearest.

Votes can be weighted as in "Emerging Properties in Self-Supervised Vision Transformers" (Caron et al., 2021), and
"Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (Wu et al., 2018): exp(cosine / temperature).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from siglip_jax.inference.nearest import merged

QUERIES, KEYS = 256, 8192  # of a block: 8 MiB of similarities
VOTES = 2**22  # pairs of neighbours compared at once


def nearest(
    queries: Float[np.ndarray, "n embed"], keys: Float[np.ndarray, "m embed"], k: int
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """Returns the k largest products of each query with the keys, largest first, and the numbers of their keys.

    For L2-normalised embeddings a product is a cosine. Of equal ones the first key comes first. No more than
    `QUERIES` x `KEYS` products are held at a time.

    Raises:
      ValueError: if k is not from 1 to m, or an embedding is not finite.
    """
    if not 1 <= k <= len(keys):
        raise ValueError(f"k must be from 1 to the number of embeddings to choose from, {len(keys)}; got {k}")
    check_finite(queries, "queries")
    check_finite(keys, "keys")
    size = min(KEYS, len(keys))
    blocks = -(-len(keys) // size)
    padded = np.zeros((blocks * size, keys.shape[1]), np.float32)
    padded[: len(keys)] = keys
    stacked = jnp.asarray(padded.reshape(blocks, size, -1))
    rows = min(QUERIES, max(len(queries), 1))
    found = [(np.zeros((0, k), np.float32), np.zeros((0, k), np.int32))]
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows]
        whole = np.zeros((rows, queries.shape[1]), np.float32)  # always the same shape: compiled once
        whole[: len(block)] = block
        values, numbers = _nearest(jnp.asarray(whole), stacked, jnp.int32(len(keys)), k)
        found.append((np.asarray(values)[: len(block)], np.asarray(numbers)[: len(block)]))
    values, numbers = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return values, numbers


@functools.partial(jax.jit, static_argnames="k")
def _nearest(
    queries: Float[Array, "rows embed"], blocks: Float[Array, "blocks size embed"], count: Int[Array, ""], k: int
) -> tuple[Float[Array, "rows k"], Int[Array, "rows k"]]:
    size = blocks.shape[1]

    def step(best: tuple[Array, Array], block: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        number, keys = block
        return merged(queries, keys, number * size, count - number * size, *best), None

    start = jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), -1, jnp.int32)
    best, _ = lax.scan(step, start, (jnp.arange(len(blocks), dtype=jnp.int32), blocks))
    return best


def check_finite(embeds: Float[np.ndarray, "rows embed"], what: str) -> None:
    """Refuses embeddings with NaN or infinity: whatever is compared with them is silently wrong.

    Raises:
      ValueError: with the number of such rows.
    """
    bad = len(embeds) - int(np.isfinite(embeds).all(axis=1).sum())
    if bad:
        raise ValueError(f"{what}: expected finite embeddings, found NaN or infinity in {bad} of {len(embeds)} rows")


def vote(
    similarities: Float[np.ndarray, "n k"],
    labels: Int[np.ndarray, "n k"],
    *,
    temperature: float | None = None,
    top: int = 5,
) -> Int[np.ndarray, "n top"]:
    """Returns the classes with most votes of the neighbours, most first; -1 where there are no more classes.

    Of classes with equal votes, that of the nearest neighbour comes first.

    Args:
      similarities: cosines, largest first, as `nearest` returns them.
      labels: the classes of those neighbours.
      temperature: weighs a neighbour by exp(cosine / temperature); None: all alike.

    Raises:
      ValueError: if the temperature is not above 0.
    """
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature must be above 0, or None for equal votes; got {temperature!r}")
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
        again = np.tril(same, -1).any(axis=2)  # a class counts where it stands first
        order = np.argsort(np.where(again, np.inf, -total), axis=1, kind="stable")[:, :top]
        classes = np.where(np.take_along_axis(again, order, axis=1), -1, np.take_along_axis(part, order, axis=1))
        ranked[start : start + rows, : classes.shape[1]] = classes
    return ranked
