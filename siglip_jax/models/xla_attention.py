"""Attention as XLA computes it, heads apart: with its weights kept, and with its weights computed again."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from siglip_jax.models.elementwise import compute_again
from siglip_jax.models.products import float32_matmul, matmul

ATTENTION = "attention"  # name of the output of "xla" and "pallas" for `jax.checkpoint`


def eager_attention(
    query: Float[Array, "batch queries heads width"],
    key: Float[Array, "batch keys heads width"],
    value: Float[Array, "batch keys heads width"],
    bias: Float[Array, "..."] | None = None,
    dropout: float = 0.0,
    rng: jax.Array | None = None,
) -> tuple[Float[Array, "batch queries heads width"], Float[Array, "batch heads queries keys"]]:
    """Returns the output of the attention and its weights, after dropout as in the reference."""
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    weights = jax.nn.softmax(_scores(query, key, bias), axis=-1)
    if dropout and rng is not None:
        kept = jax.random.bernoulli(rng, 1.0 - dropout, weights.shape)
        weights = jnp.where(kept, weights / (1.0 - dropout), 0.0)
    weights = weights.astype(query.dtype)
    return jnp.swapaxes(matmul(weights, value), 1, 2), weights


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def xla_attention(
    num_heads: int,
    query: Float[Array, "batch queries width"],
    key: Float[Array, "batch keys width"],
    value: Float[Array, "batch keys width"],
    bias: Float[Array, "..."] | None = None,
) -> Float[Array, "batch queries width"]:
    """Returns the output of the attention, whose weights the backward pass computes again.

    Kept are inputs, output, and for each query the logarithm of the sum that the softmax divides by. With these the
    gradient needs no other sum over keys than its matrix products (Dao et al. 2022, arXiv 2205.14135, appendix B.4). On
    a TPU the sum itself is kept, relative to the largest score: XLA makes maximum, exponential and sum a part of the
    product of queries and keys there, unless the maximum is used elsewhere.
    """
    return xla_forward(num_heads, query, key, value, bias)[0]


def xla_forward(num_heads: int, query: Array, key: Array, value: Array, bias: Array | None) -> tuple[Array, Any]:
    q, k, v = (_heads_first(x, num_heads) for x in (query, key, value))
    scores = _scores(q, k, bias)
    most = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - most)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = _heads_last(matmul((weights / total).astype(query.dtype), v))
    divisor = jax.lax.platform_dependent(most, total, tpu=_total, default=_log_total)
    out, divisor = checkpoint_name((out, divisor[..., 0]), ATTENTION)
    return out, (query, key, value, bias, out, divisor)


def xla_backward(num_heads: int, kept: Any, cotangent: Array) -> tuple[Array, Array, Array, Array | None]:
    query, key, value, bias, out, divisor = kept
    query, key = compute_again((query, key))
    q, k, v, g = (_heads_first(x, num_heads) for x in (query, key, value, cotangent))
    weights = jax.lax.platform_dependent(
        _scores(q, k, bias), divisor[..., None], tpu=_weights_of_total, default=_weights_of_log_total
    )
    of_weights = float32_matmul(g, jnp.swapaxes(v, -1, -2))
    # The sum over keys of weights * of_weights.
    of_heads = (heads_apart(x, num_heads).astype(of_weights.dtype) for x in (cotangent, out))
    common = jax.lax.platform_dependent(*of_heads, tpu=_dots_by_product, default=_dots)
    of_scores = weights * (of_weights - common)
    narrow = (of_scores * _factor(q)).astype(query.dtype)
    of_q, of_k = matmul(narrow, k), matmul(jnp.swapaxes(narrow, -1, -2), q)
    of_v = matmul(jnp.swapaxes(weights.astype(query.dtype), -1, -2), g)
    of_bias = None if bias is None else _sum_to(of_scores, bias)
    return _heads_last(of_q), _heads_last(of_k), _heads_last(of_v), of_bias


xla_attention.defvjp(xla_forward, xla_backward)


def _total(most: Array, total: Array) -> Array:
    return total


def _log_total(most: Array, total: Array) -> Array:
    return most + jnp.log(total)


def _weights_of_total(scores: Array, total: Array) -> Array:
    return jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True)) / total


def _weights_of_log_total(scores: Array, log_total: Array) -> Array:
    return jnp.exp(scores - log_total)


def _dots(x: Array, y: Array) -> Array:
    """Returns the dot product of each head of (batch, tokens, heads, width) as (batch, heads, tokens, 1)."""
    return jnp.sum(jnp.swapaxes(x, 1, 2) * jnp.swapaxes(y, 1, 2), axis=-1, keepdims=True)


def _dots_by_product(x: Array, y: Array) -> Array:
    """Returns `_dots` for a TPU, whose matrix unit sums a head faster than its vector unit.

    The matrix has a column of ones for each head: the product with one vector XLA would make a sum again.
    """
    heads, width = x.shape[2:]
    ones = jnp.broadcast_to(jnp.eye(heads, dtype=x.dtype)[:, None], (heads, width, heads))
    return jnp.einsum("bthw,hwk->bkt", x * y, ones, precision=jax.lax.Precision.HIGHEST)[..., None]


def _heads_first(x: Array, num_heads: int) -> Array:
    """Returns (batch, tokens, heads · width) as (batch, heads, tokens, width)."""
    return jnp.swapaxes(heads_apart(x, num_heads), 1, 2)


def heads_apart(x: Array, num_heads: int) -> Array:
    """Returns (batch, tokens, heads · width) as (batch, tokens, heads, width)."""
    return x.reshape(*x.shape[:-1], num_heads, -1)


def _heads_last(x: Array) -> Array:
    """The inverse of `_heads_first`."""
    x = jnp.swapaxes(x, 1, 2)
    return x.reshape(*x.shape[:-2], -1)


def _scores(query: Array, key: Array, bias: Array | None) -> Array:
    """Returns the scaled and biased scores in float32 of queries and keys with the heads first."""
    # Matrix products with the heads first: on a CPU, XLA computes them faster than the same einsum.
    scores = float32_matmul(query, jnp.swapaxes(key, -1, -2)) * _factor(query)
    return scores if bias is None else scores + jnp.broadcast_to(bias.astype(scores.dtype), scores.shape)


def _factor(query: Array) -> float:
    return 1.0 / math.sqrt(query.shape[-1])


def _sum_to(gradient: Array, bias: Array) -> Array:
    """Returns the gradient of a bias that was broadcast."""
    axes = tuple(i for i, size in enumerate(bias.shape) if size == 1)
    return jnp.sum(gradient, axis=axes, keepdims=True).astype(bias.dtype)
