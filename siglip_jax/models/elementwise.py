"""Layer norm, activation functions and normalisation, which keep only their inputs for the backward pass.

The backward pass computes the rest again, without a matrix product. Differentiated by JAX, these functions keep five to
ten arrays of the size of their input, more than half of the memory of a training step. `jax.jvp` is not supported.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def compute_again(x: Any) -> Any:
    """Returns kept arrays such that the compiler does not merge what is computed of them with the forward pass.

    XLA for CPUs and GPUs would otherwise keep the merged intermediate results in memory. XLA for TPUs does so only
    where it is cheaper, and the barrier would cost 5 % of the cycles of a training step.
    """
    return lax.platform_dependent(x, tpu=lambda x: x, default=lax.optimization_barrier)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
    x: Float[Array, "*batch width"],
    scale: Float[Array, " width"],
    bias: Float[Array, " width"],
    epsilon: float,
    dtype: DTypeLike,
) -> Float[Array, "*batch width"]:
    """Returns the layer normalisation of the last axis, computed in float32.

    The variance is that of the centred input: the one-pass formula, mean square less square of the mean, loses three
    digits far from zero. An input in bfloat16 has lost more than that to its own rounding; its variance is taken in one
    pass, which XLA makes part of the matrix product before it.

    Args:
      x: input.
      scale: factor of each column.
      bias: term of each column.
      epsilon: term added to the variance.
      dtype: dtype of the result.
    """
    return _layer_norm(x, scale, bias, epsilon, dtype)[0]


def _layer_norm(x: Array, scale: Array, bias: Array, epsilon: float, dtype: DTypeLike) -> tuple[Array, Any]:
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    centred = wide - mean
    if x.dtype == jnp.bfloat16:
        variance = jnp.maximum(jnp.mean(wide * wide, axis=-1, keepdims=True) - mean * mean, 0.0)  # rounded below 0
    else:
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    factor = lax.rsqrt(variance + epsilon)
    y = centred * factor * _row(scale, x.ndim) + _row(bias, x.ndim)
    return y.astype(dtype), (x, scale, bias, mean, factor)


def _layer_norm_backward(epsilon: float, dtype: DTypeLike, kept: Any, cotangent: Array) -> tuple[Array, Array, Array]:
    x, scale, bias, mean, factor = kept
    x, axes = compute_again(x), tuple(range(x.ndim - 1))
    normalized = (x.astype(jnp.float32) - mean) * factor
    g = cotangent.astype(jnp.float32)
    by_row = g * _row(scale, x.ndim)
    of_mean = jnp.mean(by_row, axis=-1, keepdims=True)
    of_factor = jnp.mean(by_row * normalized, axis=-1, keepdims=True)
    of_x = factor * (by_row - of_mean - normalized * of_factor)
    of_scale, of_bias = jnp.sum(g * normalized, axis=axes), jnp.sum(g, axis=axes)
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(bias.dtype)


layer_norm.defvjp(_layer_norm, _layer_norm_backward)


def _row(x: Array, ndim: int) -> Array:
    """Returns a vector in float32 with leading axes of size 1, as strict promotion of ranks wants it."""
    return x.astype(jnp.float32).reshape((1,) * (ndim - 1) + (-1,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _keeping_input(function: Callable[[Array], Array], x: Array) -> Array:
    return function(x)


def _keep(function: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    return function(x), x


def _differentiate(function: Callable[[Array], Array], x: Array, cotangent: Array) -> tuple[Array]:
    return jax.vjp(function, compute_again(x))[1](cotangent)


_keeping_input.defvjp(_keep, _differentiate)


def keeping_input(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Returns a function of one array that keeps only its input for the backward pass."""
    return functools.partial(_keeping_input, function)


_TANH = functools.partial(jax.nn.gelu, approximate=True)

# As they are, for a layer that computes them again itself: `Dense(activation=...)`.
ACTIVATION_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_pytorch_tanh": _TANH,
    "gelu_new": _TANH,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}


def _normalize(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))


def normalize(x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Returns float32 vectors of length 1. As in the reference there is no epsilon: a zero vector becomes NaN."""
    return _keeping_input(_normalize, x)
