"""Exact search: the largest cosines among any number of embeddings, in blocks of one shape on the device.

Memory is that of one part and a few blocks, whatever the number of embeddings; a memory-mapped part is not copied.
"""

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, Int64

QUERIES = 1024  # rows of a block of queries
BLOCK = 2048  # rows of a block of embeddings; its cosines with a block of queries take 8 MiB


def nearest(
    queries: Float32[np.ndarray, "queries embed"],
    parts: Iterable[Float32[np.ndarray, "_ embed"]],
    k: int,
    *,
    block_size: int | None = None,
) -> tuple[Float32[np.ndarray, "queries found"], Int64[np.ndarray, "queries found"]]:
    """Returns the k largest cosines of each query and the rows they belong to.

    Args:
      queries: L2-normalised embeddings, (queries, E) float32.
      parts: arrays of L2-normalised embeddings, (rows, E) float32 each; rows are numbered through all parts. Each part
        is released before the next one is asked for.
      k: number of rows to find for each query.
      block_size: rows that are compared at once; None: 2048.

    Returns:
      Cosines (queries, found), largest first, and row indices (queries, found); ties are broken by row index. `found`
      is k, or the number of all rows if there are fewer.

    Raises:
      ValueError: if a query or an embedding is not finite.

    Example:
      >>> import numpy as np
      >>> from siglip_jax.search import nearest
      >>> rows = np.eye(3, dtype=np.float32)
      >>> cosines, indices = nearest(rows[:1], [rows], 2)
      >>> indices.tolist()
      [[0, 1]]
    """
    size, rows = block_size or BLOCK, min(QUERIES, max(len(queries), 1))
    starts = range(0, len(queries), rows)
    blocks = [_padded(queries[start : start + rows], rows) for start in starts]
    empty = jnp.full((rows, k), -jnp.inf, jnp.float32), jnp.zeros((rows, k), jnp.int32)
    best, count = [empty] * len(blocks), 0
    for block, filled in _blocks(parts, queries.shape[1], size):
        block = block if len(blocks) == 1 else jnp.asarray(block)  # one copy for all queries
        numbers = np.int32(count), np.int32(filled)
        best = [merged(one, block, *numbers, *found) for one, found in zip(blocks, best, strict=True)]
        count += filled
    found = min(k, count)
    cosines, indices = (np.concatenate(arrays) for arrays in zip(*(best or [empty]), strict=True))
    check_finite(cosines[: len(queries), :found])
    return cosines[: len(queries), :found], indices[: len(queries), :found].astype(np.int64)


def check_finite(cosines: Float32[np.ndarray, "..."]) -> None:
    """Raises a `ValueError` if a cosine is NaN or infinite."""
    if not np.isfinite(cosines).all():
        raise ValueError(
            "queries and embeddings must be finite, got NaN or infinity; use a model whose embeddings are finite"
        )


def _padded(x: np.ndarray, rows: int) -> np.ndarray:
    """Returns an array padded with zeros to `rows` rows, so that one compiled program serves all."""
    if len(x) == rows:
        return x
    return np.concatenate([x, np.zeros((rows - len(x), x.shape[1]), x.dtype)])


@jax.jit
def merged(
    queries: Float32[Array, "queries embed"],
    block: Float32[Array, "block embed"],
    start: Int32[Array, ""],
    count: Int32[Array, ""],
    cosines: Float32[Array, "queries k"],
    rows: Int32[Array, "queries k"],
) -> tuple[Float32[Array, "queries k"], Int32[Array, "queries k"]]:
    """Merges the cosines of a block into the largest ones found so far.

    Args:
      queries: L2-normalised embeddings, (queries, E).
      block: L2-normalised embeddings, (block, E).
      start: index of the first row of the block.
      count: number of rows of the block that are used; the others are padding at its end.
      cosines: largest cosines found so far, (queries, k), largest first.
      rows: their row indices, (queries, k).

    Returns:
      The largest cosines with the block, and their row indices; ties are broken by row index.
    """
    own = jnp.arange(len(block), dtype=jnp.int32)
    # For one query this is far faster on a CPU than queries @ block.T.
    found = jnp.matmul(block, queries.T, precision="highest").T
    found = jnp.where(jnp.isfinite(found), found, jnp.inf)  # comes first, and is refused at the end
    found = jnp.where((own < count)[None], found, -jnp.inf)
    every = jnp.concatenate([cosines, found], 1)
    numbers = jnp.concatenate([rows, jnp.broadcast_to(start + own, found.shape)], 1)
    best, places = jax.lax.top_k(every, cosines.shape[1])  # ties go to the first, which has the lower row index
    return best, jnp.take_along_axis(numbers, places, 1)


def _blocks(parts: Iterable[np.ndarray], width: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields arrays of `size` rows, views of the parts where possible, and the number of rows that are used."""
    block, filled = np.zeros((size, width), np.float32), 0
    for part in parts:
        done = 0
        while done < len(part):
            if not filled and len(part) - done >= size:
                yield part[done : done + size], size
                done += size
                continue
            taken = min(size - filled, len(part) - done)
            block[filled : filled + taken] = part[done : done + taken]
            filled, done = filled + taken, done + taken
            # At the end of a part half a block is enough, so that the next part needs no copy.
            if filled == size or (done == len(part) and 2 * filled >= size):
                yield block, filled
                block, filled = np.zeros((size, width), np.float32), 0  # the device may still read the old one
    if filled:
        yield block, filled
