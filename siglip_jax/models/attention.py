"""Multi-head attention with a choice of implementations, for the encoders.

Mirrors `SiglipAttention`. The softmax is always float32.
"""

import functools
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from siglip_jax.models.initializers import Initializer
from siglip_jax.models.products import Dense
from siglip_jax.models.xla_attention import (
    ATTENTION,
    eager_attention,
    heads_apart,
    xla_attention,
    xla_backward,
    xla_forward,
)
from siglip_jax.parallel.mesh import platform_of

Implementation = Literal["auto", "xla", "eager", "cudnn", "pallas"]
IMPLEMENTATIONS = ("auto", "xla", "eager", "cudnn", "pallas")


def check_implementation(name: str, *, weights: bool, dropout: bool) -> None:
    """Refuses an unknown choice of `IMPLEMENTATIONS`, and one that does not support the other arguments.

    Args:
      name: one of `IMPLEMENTATIONS`.
      weights: whether attention weights are returned.
      dropout: whether attention dropout is active.

    Raises:
      ValueError: if the choice is refused.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attn_implementation must be one of {IMPLEMENTATIONS}, got {name!r}")
    if weights and name != "eager":
        raise ValueError(f"attn_implementation must be 'eager' for output_attentions=True, got {name!r}")
    if dropout and name not in ("auto", "eager"):
        raise ValueError(f"attn_implementation must be 'eager' or 'auto' for attention dropout, got {name!r}")


def cudnn_supports(dtype: DTypeLike, head_width: int) -> bool:
    """Returns whether the fused attention of cuDNN can compute in a dtype with heads of a width."""
    narrow = jnp.dtype(dtype) in (jnp.dtype(jnp.float16), jnp.dtype(jnp.bfloat16))
    return narrow and head_width % 8 == 0 and head_width <= 128


def pallas_pays(tokens: int, width: int) -> bool:
    """Returns whether the kernel for TPUs is worth it: where XLA's attention takes 40 % of a tower's estimated cycles.

    The share grows with tokens / width: it is 34 % for 196 tokens of 768 numbers, of which a kernel would not be much
    faster, and 49 % for 729 of 1,152.
    """
    return tokens >= 128 and 3 * tokens >= width


def describe_attention(
    name: str, dtype: DTypeLike, head_width: int, platform: str, *, tokens: int = 0, num_heads: int = 1
) -> str:
    """Describes the implementation that runs in inference for a choice of `IMPLEMENTATIONS`.

    Args:
      name: one of `IMPLEMENTATIONS`.
      dtype: compute dtype.
      head_width: width of a head.
      platform: JAX's name of the platform: "cpu", "gpu" or "tpu".
      tokens: number of tokens.
      num_heads: number of heads.

    Raises:
      ValueError: if the choice is unknown or cannot run on the platform.
    """
    check_implementation(name, weights=False, dropout=False)
    if name == "cudnn":
        _check_cudnn(dtype, head_width)
        if platform not in ("gpu", "cuda"):
            raise ValueError(
                f"backend must be an NVIDIA GPU for attn_implementation='cudnn', got {platform!r}; use 'auto' or 'xla'"
            )
    if name == "cudnn" or name == "auto" and platform in ("gpu", "cuda") and cudnn_supports(dtype, head_width):
        return "cudnn: one fused kernel"
    if name == "pallas" and platform != "tpu":
        raise ValueError(
            f"backend must be a TPU for attn_implementation='pallas', got {platform!r}; use 'auto' or 'xla'"
        )
    pays = platform == "tpu" and name == "auto" and pallas_pays(tokens, num_heads * head_width)
    if name == "pallas" or pays and _pallas().supports(tokens, num_heads, head_width, dtype):
        return "pallas: one fused kernel"
    if name == "eager":
        return "eager: two matrix products, softmax in float32, weights kept for the backward pass"
    return "xla: two matrix products, softmax in float32, weights computed again in the backward pass"


def _check_cudnn(dtype: DTypeLike, head_width: int) -> None:
    if not cudnn_supports(dtype, head_width):
        raise ValueError(
            "dtype must be float16 or bfloat16 and the head width a multiple of 8 up to 128 for"
            f" attn_implementation='cudnn', got {jnp.dtype(dtype).name} and {head_width}; use 'auto' or 'xla'"
        )


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


def cudnn_attention(
    num_heads: int,
    query: Float[Array, "batch queries width"],
    key: Float[Array, "batch keys width"],
    value: Float[Array, "batch keys width"],
    bias: Float[Array, "..."] | None = None,
) -> Float[Array, "batch queries width"]:
    """Returns the output of cuDNN's fused attention.

    Raises:
      ValueError: if it does not support the arguments, or jax has no CUDA here.
    """
    width = query.shape[-1] // num_heads
    _check_cudnn(query.dtype, width)
    if not _cudnn_runs(num_heads, query, key, value, bias):
        raise ValueError(
            "backend must be an NVIDIA GPU, and the number of tokens even with a mask, for attn_implementation='cudnn',"
            f" got {platform_of(None)!r} and {query.shape[1]} tokens; use 'auto' or 'xla'"
        )
    return _cudnn(num_heads, query, key, value, bias)


def _cudnn(num_heads: int, query: Array, key: Array, value: Array, bias: Array | None) -> Array:
    if bias is None:
        odd = query.shape[1] % 2 or key.shape[1] % 2
        return (_cudnn_odd if odd else _cudnn_kernel)(num_heads, query, key, value)
    # The lowest float32 would become -inf in a narrower dtype.
    bias = jnp.maximum(bias, float(jnp.finfo(query.dtype).min)).astype(query.dtype)
    bias = jnp.broadcast_to(bias, (*bias.shape[:2], query.shape[1], key.shape[1]))
    return _cudnn_kernel(num_heads, query, key, value, bias=bias)


def _cudnn_kernel(num_heads: int, query: Array, key: Array, value: Array, **options: Any) -> Array:
    q, k, v = (heads_apart(x, num_heads) for x in (query, key, value))
    with jax.numpy_dtype_promotion("standard"):  # jax's own code relies on it for narrow dtypes
        out = jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **options)
    return out.reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cudnn_odd(num_heads: int, query: Array, key: Array, value: Array) -> Array:
    """Attention of an odd number of tokens, which jax refuses to differentiate: a gradient has one more, left out."""
    return _cudnn_kernel(num_heads, query, key, value)


def _cudnn_odd_forward(num_heads: int, query: Array, key: Array, value: Array) -> tuple[Array, Any]:
    def even(*arrays: Array) -> Array:
        lengths = [jnp.full(len(x), x.shape[1], jnp.int32) for x in arrays[:2]]
        padded = [jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0))) for x in arrays]
        options = {"query_seq_lengths": lengths[0], "key_value_seq_lengths": lengths[1]}
        return _cudnn_kernel(num_heads, *padded, **options)[:, : arrays[0].shape[1]]

    return jax.vjp(even, query, key, value)


def _cudnn_odd_backward(_: int, pull: Any, cotangent: Array) -> tuple[Array, Array, Array]:
    return pull(cotangent)


_cudnn_odd.defvjp(_cudnn_odd_forward, _cudnn_odd_backward)


def _cudnn_runs(num_heads: int, query: Array, key: Array, value: Array, bias: Array | None) -> bool:
    """Returns whether jax has CUDA on this machine and its cuDNN takes these shapes, also for gradients."""
    if bias is not None and (query.shape[1] % 2 or key.shape[1] % 2):
        return False
    try:
        jax.eval_shape(functools.partial(_cudnn, num_heads), query, key, value, bias)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _pallas() -> ModuleType:
    """Returns the kernel for TPUs, which nothing else needs Pallas for."""
    from siglip_jax.models import pallas_attention

    return pallas_attention


# Differentiated as a whole: the gradient of `platform_dependent` would keep what each of its functions keeps.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5))
def pallas_attention(
    num_heads: int,
    query: Float[Array, "batch tokens width"],
    key: Float[Array, "batch tokens width"],
    value: Float[Array, "batch tokens width"],
    bias: Float[Array, "#batch 1 1 tokens"] | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "batch tokens width"]:
    """Returns the output of the kernel for TPUs, or of `xla_attention` where the program is lowered for another device.

    Raises:
      ValueError: if the kernel does not support the arguments.
    """
    return _pallas_forward(num_heads, query, key, value, bias, mesh)[0]


def _pallas_forward(
    num_heads: int, query: Array, key: Array, value: Array, bias: Array | None, mesh: Mesh | None
) -> tuple[Array, Any]:
    def on_tpu(*arrays: Any) -> tuple[Array, Array]:
        out = _pallas().pallas_attention(*arrays, num_heads=num_heads, mesh=mesh)
        return out, jnp.zeros((out.shape[0], num_heads, out.shape[1]), jnp.float32)

    def elsewhere(*arrays: Any) -> tuple[Array, Array]:
        out, (*_, divisor) = xla_forward(num_heads, *arrays)
        return out, divisor

    kept = jax.lax.platform_dependent(query, key, value, bias, tpu=on_tpu, default=elsewhere)
    out, divisor = checkpoint_name(kept, ATTENTION)
    return out, (query, key, value, bias, out, divisor)


def _pallas_backward(num_heads: int, mesh: Mesh | None, kept: Any, cotangent: Array) -> Any:
    def on_tpu(kept: Any, cotangent: Array) -> Any:
        *inputs, bias, _, _ = kept
        kernel = functools.partial(_pallas().pallas_attention, bias=bias, num_heads=num_heads, mesh=mesh)
        gradients = jax.vjp(kernel, *inputs)[1](cotangent)
        return *gradients, None if bias is None else jnp.zeros_like(bias)

    elsewhere = functools.partial(xla_backward, num_heads)
    return jax.lax.platform_dependent(kept, cotangent, tpu=on_tpu, default=elsewhere)


pallas_attention.defvjp(_pallas_forward, _pallas_backward)


def _pallas_runs(num_heads: int, query: Array, key: Array, bias: Array | None, mesh: Mesh | None) -> bool:
    """Returns whether the kernel for TPUs supports the arguments and is worth it."""
    fixed = all(isinstance(size, int) for size in query.shape)  # exported programs have sizes that are symbols
    if not fixed or query.shape != key.shape or bias is not None and bias.shape[1:3] != (1, 1):
        return False
    tokens, width = query.shape[1:]
    return pallas_pays(tokens, width) and _pallas().runs(query.shape, num_heads, query.dtype, mesh)


def fastest_attention(
    num_heads: int,
    query: Float[Array, "batch queries width"],
    key: Float[Array, "batch keys width"],
    value: Float[Array, "batch keys width"],
    bias: Float[Array, "..."] | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "batch queries width"]:
    """Returns the output of the attention, by the implementation that is fastest on the platform it is lowered for.

    That is cuDNN's fused attention on NVIDIA GPUs and `pallas_attention` on TPUs, where these support the arguments and
    the latter pays, and `xla_attention` elsewhere.
    """
    elsewhere = functools.partial(xla_attention, num_heads)
    if _pallas_runs(num_heads, query, key, bias, mesh):
        elsewhere = functools.partial(pallas_attention, num_heads, mesh=mesh)
    if cudnn_supports(query.dtype, query.shape[-1] // num_heads) and _cudnn_runs(num_heads, query, key, value, bias):
        on_gpu = functools.partial(_cudnn, num_heads)
        return jax.lax.platform_dependent(query, key, value, bias, cuda=on_gpu, default=elsewhere)
    return elsewhere(query, key, value, bias)


_ATTENTION = {"xla": xla_attention, "cudnn": cudnn_attention}
_ATTENTION_OVER_MESH = {"auto": fastest_attention, "pallas": pallas_attention}


class Attention(nn.Module):
    """Attention with its projections; `dropout` is the current rate, 0 if deterministic.

    Keys and values are projected from the input itself, or from a context of any width.
    """

    num_heads: int
    kernel_init: Initializer
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    implementation: str = "auto"
    output_weights: bool = False
    mesh: Mesh | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        bias: Float[Array, "..."] | None = None,
        context: Float[Array, "batch keys context_width"] | None = None,
    ) -> tuple[Float[Array, "batch tokens width"], Float[Array, "batch heads tokens keys"] | None]:
        dense = functools.partial(
            Dense, x.shape[-1], dtype=self.dtype, param_dtype=self.param_dtype, kernel_init=self.kernel_init
        )
        query, source = dense(name="q_proj")(x), x if context is None else context
        key, value = (dense(name=f"{name}_proj")(source) for name in "kv")
        check_implementation(self.implementation, weights=self.output_weights, dropout=self.dropout > 0)
        weights = None
        if self.implementation == "eager" or self.dropout:
            rng = self.make_rng("dropout") if self.dropout else None
            q, k, v = (heads_apart(y, self.num_heads) for y in (query, key, value))
            out, weights = eager_attention(q, k, v, bias, self.dropout, rng)
            out = out.reshape(x.shape)
        elif self.implementation in _ATTENTION:
            out = _ATTENTION[self.implementation](self.num_heads, query, key, value, bias)
        else:
            out = _ATTENTION_OVER_MESH[self.implementation](self.num_heads, query, key, value, bias, self.mesh)
        return dense(name="out_proj")(out), weights if self.output_weights else None
