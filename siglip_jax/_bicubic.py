"""The matrix of torch's bicubic interpolation along one axis, in numpy.

`jax.image.resize(..., "bicubic")` uses another cubic (a = -0.5) and an antialias filter: off by up to 0.46.
"""

import functools

import numpy as np

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
