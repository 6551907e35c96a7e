"""GELU by its formula in numpy, in the dtype of the input."""

import numpy as np


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    """Returns the approximation by a hyperbolic tangent (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
