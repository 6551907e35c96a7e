"""Resizing of the image tower's position table, equal to torch's bicubic interpolation."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from siglip_jax.bicubic import bicubic_matrix


def resize_position_table(
    table: Float[Array, "positions width"], grid: tuple[int, int]
) -> Float[Array, "new_positions width"]:
    """Resizes a square table of position embeddings, row-major, to another (rows, columns) grid.

    Raises:
      ValueError: if the table is not square.
    """
    side = math.isqrt(table.shape[0])
    if side * side != table.shape[0]:
        raise ValueError(f"only a square position table can be resized, got {table.shape[0]} positions")
    rows = jnp.asarray(bicubic_matrix(side, grid[0]), table.dtype)
    columns = jnp.asarray(bicubic_matrix(side, grid[1]), table.dtype)
    square = table.reshape(side, side, table.shape[1])
    # Exact arithmetic matters more than speed here: this runs once per resolution on a small table.
    resized = jnp.einsum("oi,pj,ijd->opd", rows, columns, square, precision="highest")
    return resized.reshape(grid[0] * grid[1], table.shape[1])
