"""Functions that keep only their inputs: values and derivatives against float64, and what they keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from siglip_jax.models.elementwise import ACTIVATION_FUNCTIONS, keeping_input, layer_norm, normalize
from tests.support.gelu import tanh_gelu

EPSILON = 1e-6


def with_outliers(*shape):
    """Values of order one around a mean of 20, with a column of hundreds, as real activations have."""
    x = np.random.default_rng(0).normal(20, 1, shape)
    x[..., 5] += 300
    return x


def float64_layer_norm(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON) * scale + bias


def float64_gradients(x, scale, weights):
    """Returns the gradients of sum(weights * layer norm) by hand."""
    centred = x - x.mean(-1, keepdims=True)
    factor = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
    y, g = centred * factor, weights * scale
    of_x = factor * (g - g.mean(-1, keepdims=True) - y * (g * y).mean(-1, keepdims=True))
    return of_x, (weights * y).sum((0, 1)), weights.sum((0, 1))


def test_layer_norm_and_its_gradients_equal_float64():
    rng = np.random.default_rng(1)
    x, scale, bias, weights = (
        with_outliers(3, 7, 50),
        rng.normal(size=50),
        rng.normal(size=50),
        rng.normal(size=(3, 7, 50)),
    )
    given = [jnp.asarray(a, jnp.float32) for a in (x, scale, bias)]
    x, scale, bias = (np.asarray(a, np.float64) for a in given)
    weights = np.asarray(jnp.asarray(weights, jnp.float32), np.float64)
    out = layer_norm(*given, EPSILON, jnp.float32)
    expected = float64_layer_norm(x, scale, bias)
    np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())
    found = jax.grad(lambda *a: jnp.sum(layer_norm(*a, EPSILON, jnp.float32) * jnp.float32(weights)), (0, 1, 2))(*given)
    for gradient, right in zip(found, float64_gradients(x, scale, weights), strict=True):
        np.testing.assert_allclose(gradient, right, atol=1e-5 * np.abs(right).max())


def test_layer_norm_of_bfloat16_rounds_once():
    x = jnp.asarray(with_outliers(4, 50), jnp.bfloat16)
    scale, bias = jnp.full(50, 1.5), jnp.full(50, 0.25)
    out = layer_norm(x, scale, bias, EPSILON, jnp.bfloat16)
    assert out.dtype == jnp.bfloat16
    expected = float64_layer_norm(np.asarray(x, np.float64), 1.5, 0.25)
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=2**-8 * (1 + 1e-3), atol=1e-5)
    gradients = jax.grad(lambda *a: jnp.sum(layer_norm(*a, EPSILON, jnp.bfloat16)[:, 3].astype(jnp.float32)), (0, 1))(
        x, scale, bias
    )
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]


@pytest.mark.parametrize("width", [52, 1152])
@pytest.mark.parametrize("offset", [0.0, 3.0, 30.0, 100.0])
def test_the_variance_of_bfloat16_adds_nothing_to_the_rounding_of_the_input(offset, width):
    unrounded = np.random.default_rng(2).normal(offset, 1, (64, width))
    x = jnp.asarray(unrounded, jnp.bfloat16)
    expected = float64_layer_norm(np.asarray(x, np.float64), 1.0, 0.0)
    rounding = np.abs(float64_layer_norm(unrounded, 1.0, 0.0) - expected).max()
    error = np.abs(layer_norm(x, jnp.ones(width), jnp.zeros(width), EPSILON, jnp.float32) - expected).max()
    assert error < 0.02 * rounding and error < 2**-8


def test_equal_values_have_a_variance_of_zero_also_where_rounding_takes_it_below():
    out = layer_norm(jnp.full((3, 52), 1008, jnp.bfloat16), jnp.ones(52), jnp.zeros(52), EPSILON, jnp.float32)
    assert np.isfinite(out).all()


def cdf(x):
    return 0.5 * (1 + erf(x / np.sqrt(2)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


FLOAT64 = {
    "gelu_pytorch_tanh": tanh_gelu,
    "gelu_new": tanh_gelu,
    "gelu": lambda x: x * cdf(x),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(x),
}


@pytest.mark.parametrize("name", ACTIVATION_FUNCTIONS)
def test_activation_functions_and_their_derivatives_equal_float64(name):
    x, function = jnp.linspace(-6.05, 6.05, 300, dtype=jnp.float32), keeping_input(ACTIVATION_FUNCTIONS[name])
    x64, h = np.asarray(x, np.float64), 1e-5
    np.testing.assert_allclose(function(x), FLOAT64[name](x64), atol=5e-6)
    slope = (FLOAT64[name](x64 + h) - FLOAT64[name](x64 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(lambda x: function(x).sum())(x), slope, atol=5e-6)


@pytest.mark.parametrize("name", [name for name in ACTIVATION_FUNCTIONS if name != "relu"])
def test_second_derivatives_forward_over_reverse(name):
    x = jnp.asarray([-1.3, -0.2, 0.4, 2.1])
    function = keeping_input(ACTIVATION_FUNCTIONS[name])
    _, found = jax.jvp(jax.grad(lambda x: function(x).sum()), (x,), (jnp.ones(4),))
    x64, h = np.asarray(x, np.float64), 1e-4
    f = FLOAT64[name]
    np.testing.assert_allclose(found, (f(x64 + h) - 2 * f(x64) + f(x64 - h)) / h**2, atol=1e-4)


def kept(function, *args):
    """Returns the shapes that are kept for the backward pass."""
    return sorted(x.shape for x in jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(function, *a)[1], *args)))


def test_only_inputs_and_statistics_are_kept():
    x, row = jnp.zeros((4, 6, 8)), jnp.zeros(8)
    norm = kept(lambda x, s, b: layer_norm(x, s, b, EPSILON, jnp.float32), x, row, row)
    assert norm == [(4, 6, 1), (4, 6, 1), (4, 6, 8), (8,), (8,)]
    for name in set(ACTIVATION_FUNCTIONS) - {"relu"}:
        assert kept(keeping_input(ACTIVATION_FUNCTIONS[name]), x) == [(4, 6, 8)]
    assert kept(normalize, x) == [(4, 6, 8)]


def test_normalize_and_its_gradient_equal_float64():
    x, w = (np.asarray(a, np.float32) for a in np.random.default_rng(2).normal(size=(2, 3, 5)))
    x64 = x.astype(np.float64)
    length = np.linalg.norm(x64, axis=-1, keepdims=True)
    y = x64 / length
    np.testing.assert_allclose(normalize(jnp.asarray(x)), y, rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(normalize(x) * w))(jnp.asarray(x))
    np.testing.assert_allclose(gradient, (w - y * (w * y).sum(-1, keepdims=True)) / length, atol=1e-6)
