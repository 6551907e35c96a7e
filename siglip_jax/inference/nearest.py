"""Exact search: the highest cosines among any number of embeddings, in blocks of one shape on the device.

Memory is that of one part and a few blocks, however many embeddings there are; a part that is mapped is not copied.
"""

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, Int64

BLOCK = 2048  # embeddings


def nearest(
    queries: Float32[np.ndarray, "queries embed"], parts: Iterable[Float32[np.ndarray, "_ embed"]], k: int
) -> tuple[Float32[np.ndarray, "queries found"], Int64[np.ndarray, "queries found"]]:
    """Returns the k highest cosines of each query, highest first, and the rows they are of.

    Of equal ones the lower row comes first. Fewer are found where there are fewer rows.

    Args:
      queries: L2-normalised.
      parts: L2-normalised embeddings, whose rows are counted through; each is let go of before the next is asked for.
    """
    scores = jnp.full((len(queries), k), -jnp.inf, jnp.float32)
    rows = jnp.zeros((len(queries), k), jnp.int32)
    start = 0
    for block, count in _blocks(parts, queries.shape[1]):
        scores, rows = merged(queries, block, np.int32(start), np.int32(count), scores, rows)
        start += count
    found = min(k, start)
    return np.asarray(scores)[:, :found], np.asarray(rows)[:, :found].astype(np.int64)


@jax.jit
def merged(
    queries: Float32[Array, "queries embed"],
    block: Float32[Array, "block embed"],
    start: Int32[Array, ""],
    count: Int32[Array, ""],
    scores: Float32[Array, "queries k"],
    rows: Int32[Array, "queries k"],
) -> tuple[Float32[Array, "queries k"], Int32[Array, "queries k"]]:
    """Returns the highest of those found before and those of a block, and the rows they are of.

    Of equal ones those found before come first, then the lower row.

    Args:
      start: number of the first row of the block.
      count: rows of the block that hold anything; the others stand at its end.
      scores, rows: found before.
    """
    own = jnp.arange(len(block), dtype=jnp.int32)
    cosines = jnp.matmul(block, queries.T, precision="highest").T  # for one query far faster than the other way round
    cosines = jnp.where((own < count)[None], cosines, -jnp.inf)
    every = jnp.concatenate([scores, cosines], 1)
    numbers = jnp.concatenate([rows, jnp.broadcast_to(start + own, cosines.shape)], 1)
    best, places = jax.lax.top_k(every, scores.shape[1])  # of equal ones the first, which is the lower row
    return best, jnp.take_along_axis(numbers, places, 1)


def _blocks(parts: Iterable[np.ndarray], width: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields arrays of `BLOCK` rows, and how many of these hold anything: views of the parts as far as possible."""
    block, filled = np.zeros((BLOCK, width), np.float32), 0
    for part in parts:
        done = 0
        while done < len(part):
            if not filled and len(part) - done >= BLOCK:
                yield part[done : done + BLOCK], BLOCK
                done += BLOCK
                continue
            taken = min(BLOCK - filled, len(part) - done)
            block[filled : filled + taken] = part[done : done + taken]
            filled, done = filled + taken, done + taken
            # At the end of a part half a block will do, so that the next part can be used as it is.
            if filled == BLOCK or (done == len(part) and 2 * filled >= BLOCK):
                yield block, filled
                block, filled = np.zeros((BLOCK, width), np.float32), 0  # the device may still read the other
    if filled:
        yield block, filled
