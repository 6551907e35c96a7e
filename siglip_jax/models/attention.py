"""Multi-head attention with a choice of implementations, for the encoders and the pooling head.

Mirrors `SiglipAttention` and, with queries from the probe, the `nn.MultiheadAttention` of the pooling head, whose
packed projection is kept as separate `q_proj`, `k_proj`, `v_proj`. The softmax is always float32.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from siglip_jax.models.initializers import Initializer
from siglip_jax.models.products import Dense, float32_matmul, matmul, on_cpu

Implementation = Literal["eager", "xla", "cudnn"]
IMPLEMENTATIONS = ("auto", "xla", "eager", "cudnn")


def choose_implementation(
    name: str, *, weights: bool, dropout: bool, dtype: DTypeLike, head_width: int
) -> Implementation:
    """Returns the implementation that runs for a choice of `IMPLEMENTATIONS`.

    "auto" means "xla", or "eager" with dropout, which no other implements. "xla" becomes "eager" on a CPU, where that
    is faster, and in dtypes narrower than float32, in which jax's own has no gradients under strict promotion.

    Args:
      name: one of `IMPLEMENTATIONS`.
      weights: whether attention weights are returned.
      dropout: whether attention dropout is active.
      dtype: compute dtype.
      head_width: width of a head.

    Raises:
      ValueError: if the choice is unknown, or does not support the other arguments.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attn_implementation must be one of {IMPLEMENTATIONS}, got {name!r}")
    if weights and name != "eager":
        raise ValueError(f"attn_implementation must be 'eager' for output_attentions=True, got {name!r}")
    if dropout and name not in ("auto", "eager"):
        raise ValueError(f"attn_implementation must be 'eager' or 'auto' for attention dropout, got {name!r}")
    if name == "cudnn":
        dtype = jnp.dtype(dtype)
        if jax.default_backend() != "gpu":
            raise ValueError(
                "backend must be an NVIDIA GPU for attn_implementation='cudnn', got"
                f" {jax.default_backend()!r}; use 'auto' or 'xla'"
            )
        if dtype not in (jnp.dtype(jnp.float16), jnp.dtype(jnp.bfloat16)) or head_width % 8 or head_width > 128:
            raise ValueError(
                "dtype must be float16 or bfloat16 and the head width a multiple of 8 up to 128 for"
                f" attn_implementation='cudnn', got {dtype.name} and {head_width}; use 'auto' or 'xla'"
            )
        return "cudnn"
    return "eager" if name == "eager" or dropout or on_cpu() or jnp.dtype(dtype).itemsize < 4 else "xla"


def describe_attention(name: str, dtype: DTypeLike, head_width: int) -> str:
    """Describes the implementation that runs in inference for a choice of `IMPLEMENTATIONS`.

    Raises:
      ValueError: if the choice is unknown or cannot run here.
    """
    implementation = choose_implementation(name, weights=False, dropout=False, dtype=dtype, head_width=head_width)
    if implementation == "cudnn":
        return "cudnn: one fused kernel"
    if implementation == "eager":
        return "eager: two matrix products, softmax in float32"
    return "xla: jax.nn.dot_product_attention, softmax in float32"


def mask_to_bias(
    mask: ArrayLike | None,
) -> Float[Array, "batch heads queries keys"] | None:
    """Returns a mask (batch, keys), 1 to attend, as an additive bias; a 4-D bias is returned unchanged.

    Masked keys get the lowest float32 rather than −∞, so that a row without any key to attend to stays finite.

    Raises:
      ValueError: if the mask has neither 2 nor 4 axes.
    """
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if mask.ndim == 4:
        return mask
    if mask.ndim != 2:
        raise ValueError(f"attention_mask must be (batch, tokens) or a 4-D additive bias, got shape {mask.shape}")
    return jnp.where(mask.astype(bool)[:, None, None, :], 0.0, jnp.finfo(jnp.float32).min).astype(jnp.float32)


def eager_attention(
    query: Float[Array, "batch queries heads width"],
    key: Float[Array, "batch keys heads width"],
    value: Float[Array, "batch keys heads width"],
    bias: Float[Array, "..."] | None = None,
    dropout: float = 0.0,
    rng: jax.Array | None = None,
) -> tuple[Float[Array, "batch queries heads width"], Float[Array, "batch heads queries keys"]]:
    """Returns the output of the attention and its weights, after dropout as in the reference."""
    # Matrix products with the heads first: on a CPU, XLA computes them faster than the same einsum.
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    scores = float32_matmul(query, jnp.swapaxes(key, -1, -2)) * (1.0 / math.sqrt(query.shape[-1]))
    if bias is not None:
        scores = scores + jnp.broadcast_to(bias.astype(jnp.float32), scores.shape)
    weights = jax.nn.softmax(scores, axis=-1)
    if dropout and rng is not None:
        kept = jax.random.bernoulli(rng, 1.0 - dropout, weights.shape)
        weights = jnp.where(kept, weights / (1.0 - dropout), 0.0)
    weights = weights.astype(query.dtype)
    return jnp.swapaxes(matmul(weights, value), 1, 2), weights


def jax_attention(
    query: Float[Array, "batch queries heads width"],
    key: Float[Array, "batch keys heads width"],
    value: Float[Array, "batch keys heads width"],
    bias: Float[Array, "..."] | None,
    implementation: Literal["xla", "cudnn"],
) -> Float[Array, "batch queries heads width"]:
    """Returns the output of `jax.nn.dot_product_attention`."""
    if bias is not None:  # the lowest float32 would become -inf in a narrower dtype
        bias = jnp.maximum(bias, float(jnp.finfo(query.dtype).min)).astype(query.dtype)
    with jax.numpy_dtype_promotion("standard"):  # jax's own code relies on it for narrow dtypes
        return jax.nn.dot_product_attention(query, key, value, bias=bias, implementation=implementation)


class Attention(nn.Module):
    """Attention with its projections; `dropout` is the current rate, 0 if deterministic."""

    num_heads: int
    kernel_init: Initializer
    out_kernel_init: Initializer
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    implementation: str = "auto"
    output_weights: bool = False

    @nn.compact
    def __call__(
        self,
        queries_from: Float[Array, "batch queries width"],
        keys_from: Float[Array, "batch keys width"],
        bias: Float[Array, "..."] | None = None,
    ) -> tuple[Float[Array, "batch queries width"], Float[Array, "batch heads queries keys"] | None]:
        width = queries_from.shape[-1]
        head_width = width // self.num_heads

        def project(x: Array, name: str) -> Array:
            y = Dense(width, dtype=self.dtype, param_dtype=self.param_dtype, kernel_init=self.kernel_init, name=name)(x)
            return y.reshape(*y.shape[:-1], self.num_heads, head_width)

        query = project(queries_from, "q_proj")
        key = project(keys_from, "k_proj")
        value = project(keys_from, "v_proj")
        implementation = choose_implementation(
            self.implementation,
            weights=self.output_weights,
            dropout=self.dropout > 0,
            dtype=self.dtype,
            head_width=head_width,
        )
        weights = None
        if implementation == "eager":
            rng = self.make_rng("dropout") if self.dropout else None
            out, weights = eager_attention(query, key, value, bias, self.dropout, rng)
        else:
            out = jax_attention(query, key, value, bias, implementation)
        out = out.reshape(*out.shape[:-2], width)
        out = Dense(
            width, dtype=self.dtype, param_dtype=self.param_dtype, kernel_init=self.out_kernel_init, name="out_proj"
        )(out)
        return out, weights if self.output_weights else None
