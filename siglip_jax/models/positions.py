"""Resizing of the image towers' position tables: bicubic for another fixed size, antialiased bilinear for NaFlex.

Both equal torch's interpolation, `interpolate_pos_encoding` of SigLIP and `resize_positional_embeddings` of SigLIP 2,
except for grids of one column, which torch 2.13 computes wrongly on a CPU; these follow the definition, as big_vision
does.

`bucket_ids` equals the position ids of Idefics 2 and its kin, which take entries of the table instead of resizing it.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from siglip_jax._bicubic import bicubic_matrix


def resize_position_table(
    table: Float[Array, "positions width"], grid: tuple[int, int]
) -> Float[Array, "new_positions width"]:
    """Returns a square, row-major table of position embeddings resized to a grid (rows, columns).

    Raises:
      ValueError: if the table is not square.
    """
    side = _side(table)
    rows = jnp.asarray(bicubic_matrix(side, grid[0]), table.dtype)
    columns = jnp.asarray(bicubic_matrix(side, grid[1]), table.dtype)
    square = table.reshape(side, side, table.shape[1])
    # Accuracy matters more than speed: this runs once per resolution on a small table.
    resized = jnp.einsum("oi,pj,ijd->opd", rows, columns, square, precision="highest")
    return resized.reshape(grid[0] * grid[1], table.shape[1])


def flexible_positions(
    table: Float[Array, "positions width"], spatial_shapes: Int[Array, "batch 2"], length: int
) -> Float[Array, "batch {length} width"]:
    """Returns a square, row-major table resized in float32 to the grid of each image, of any sides and maybe traced.

    The weights of a patch over the whole table follow from its row and column, so the grids need no static size, and
    one matrix product returns the positions of all images. Patches beyond the grid of an image are padding and get its
    first position, as in the reference.

    Args:
      table: position embeddings, (positions, width), with a square number of positions.
      spatial_shapes: (rows, columns) of each image; values below 1, as in rows that only pad the batch, count as 1.
      length: patches of an image, padding included.

    Raises:
      ValueError: if the table is not square.
    """
    side = _side(table)
    rows, columns = jnp.split(jnp.maximum(spatial_shapes.astype(jnp.int32), 1), 2, axis=1)
    patch = jnp.arange(length, dtype=jnp.int32)[None]
    patch = jnp.where(patch < rows * columns, patch, 0)
    down, across = _weights(patch // columns, rows, side), _weights(patch % columns, columns, side)
    weights = (down[..., :, None] * across[..., None, :]).reshape(*patch.shape, side * side)
    return jnp.einsum("bnp,pd->bnd", weights, table.astype(jnp.float32), precision="highest")


def sincos_positions(grid: tuple[int, int], width: int) -> Float[Array, "positions {width}"]:
    """Returns fixed positions of a grid of patches: sines and cosines of the column, then of the row.

    Source: "sincos2d" of big_vision, after MoCo v3 (Chen et al. 2021, arXiv 2104.02057).

    Args:
      grid: rows and columns of patches.
      width: width of the tower, a multiple of 4.

    Raises:
      ValueError: if the width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"width must be a multiple of 4 for fixed positions, got {width}; use learned positions")
    frequencies = 10_000.0 ** -jnp.linspace(0.0, 1.0, width // 4)
    rows, columns = (i.reshape(-1, 1) * frequencies[None] for i in jnp.indices(grid, dtype=jnp.float32))
    return jnp.concatenate([jnp.sin(columns), jnp.cos(columns), jnp.sin(rows), jnp.cos(rows)], axis=1)


def grid_bucket_ids(side: int, grid: tuple[int, int], counts: Int[Array, "batch 2"] | None = None) -> Int[Array, "..."]:
    """Returns the position of each patch of a grid in a square table: the entry of the table that the patch falls into.

    Source: `Idefics2VisionEmbeddings` of `transformers`.

    Args:
      side: rows, and columns, of the table.
      grid: rows and columns of patches.
      counts: rows and columns of patches that are not padding, of each image; None: all of the grid.

    Returns:
      (images, rows * columns) positions, row by row; one image without `counts`, for all of them.
    """
    rows, columns = grid
    counts = jnp.array([grid]) if counts is None else counts
    down = jnp.asarray(bucket_ids(side, rows))[counts[:, 0]]
    across = jnp.asarray(bucket_ids(side, columns))[counts[:, 1]]
    return (down[:, :, None] * side + across[:, None, :]).reshape(len(counts), rows * columns)


@functools.lru_cache(maxsize=64)
def bucket_ids(side: int, most: int) -> np.ndarray:
    """Returns the table entry of each patch along one axis, for axes of 0 to `most` patches.

    They are computed here, not on the device: where a patch begins at the border of an entry, rounding decides, and
    devices divide differently.

    Args:
      side: entries of the table along the axis.
      most: largest number of patches along the axis.

    Returns:
      (most + 1, most) int32; row n holds the entries of an axis of n patches, followed by padding.
    """
    step = 1 / side
    borders = (step + step * np.arange(side)).astype(np.float32)
    share = np.float32(1) / np.maximum(np.arange(most + 1), 1).astype(np.float32)
    starts = np.minimum(np.arange(most, dtype=np.float32) * share[:, None], np.float32(1 - 1e-6))
    ids = np.minimum(np.searchsorted(borders, starts, side="right"), side - 1).astype(np.int32)
    ids.setflags(write=False)
    return ids


def _weights(
    index: Int[Array, "batch length"], size: Int[Array, "batch 1"], side: int
) -> Float[Array, "batch length {side}"]:
    """Returns the weights of `side` table entries for entry `index` of an axis resized to `size`.

    They form a triangle around the position of the entry in the table, as wide as the larger of both steps. Positions
    are counted in units of 1 / (2 * size) of a table entry and are thus integers: only the last division rounds.
    """
    entries = (2 * jnp.arange(side, dtype=jnp.int32) + 1)[None, None, :]
    distance = jnp.abs(entries * size[..., None] - (2 * index[..., None] + 1) * side)
    triangle = jnp.maximum(2 * jnp.maximum(size, side)[..., None] - distance, 0).astype(jnp.float32)
    return triangle / jnp.sum(triangle, axis=-1, keepdims=True)


def _side(table: Float[Array, "positions width"]) -> int:
    """Returns the number of rows, and of columns, of a square position table."""
    side = math.isqrt(table.shape[0])
    if side * side != table.shape[0]:
        raise ValueError(f"position table must be square to be resized, got {table.shape[0]} positions")
    return side
