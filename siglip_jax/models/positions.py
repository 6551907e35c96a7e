"""Resizing of the image tower's position table, equal to torch's bicubic interpolation.

`jax.image.resize(..., "bicubic")` uses another cubic (a = -0.5) and an antialias filter: off by up to 0.46.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_A = -0.75  # torch's choice of the cubic's free parameter


def _cubic(distance: np.ndarray) -> np.ndarray:
    x = np.abs(distance)
    near = (_A + 2) * x**3 - (_A + 3) * x**2 + 1
    far = _A * x**3 - 5 * _A * x**2 + 8 * _A * x - 4 * _A
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.lru_cache(maxsize=64)
def bicubic_matrix(size: int, new_size: int) -> np.ndarray:
    """Returns the (new_size, size) float64 matrix of `torch.nn.functional.interpolate`'s bicubic along one axis.

    `align_corners=False`, no antialias; samples beyond the border repeat it.
    """
    centre = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    left = np.floor(centre).astype(int)
    matrix = np.zeros((new_size, size))
    for tap in (-1, 0, 1, 2):
        column = np.clip(left + tap, 0, size - 1)
        np.add.at(matrix, (np.arange(new_size), column), _cubic(centre - left - tap))
    return matrix


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
