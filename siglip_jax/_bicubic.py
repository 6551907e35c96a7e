"""The matrix of torch's bicubic interpolation along one axis, in numpy.

`jax.image.resize(..., "bicubic")` uses another cubic (a = -0.5) and an antialias filter; it differs by up to 0.46.
"""

import functools

import numpy as np

_A = -0.75  # the free parameter of the cubic, as in torch


def _cubic(distance: np.ndarray) -> np.ndarray:
    x = np.abs(distance)
    near = (_A + 2) * x**3 - (_A + 3) * x**2 + 1
    far = _A * x**3 - 5 * _A * x**2 + 8 * _A * x - 4 * _A
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.lru_cache(maxsize=64)
def bicubic_matrix(size: int, new_size: int) -> np.ndarray:
    """Returns the matrix of a bicubic resize along one axis.

    Equals `torch.nn.functional.interpolate` with `mode="bicubic"`, `align_corners=False` and no antialias; samples
    beyond the border repeat it.

    Args:
      size: number of samples of the input.
      new_size: number of samples of the output.

    Returns:
      (new_size, size) float64; each row sums to 1.
    """
    centre = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    left = np.floor(centre).astype(int)
    matrix = np.zeros((new_size, size))
    for tap in (-1, 0, 1, 2):
        column = np.clip(left + tap, 0, size - 1)
        np.add.at(matrix, (np.arange(new_size), column), _cubic(centre - left - tap))
    return matrix
