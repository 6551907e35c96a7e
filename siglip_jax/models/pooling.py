"""The pooling head of the image towers: a learned probe attends to all patches, then an MLP with a residual.

Mirrors `SiglipMultiheadAttentionPoolingHead`, with the products in another order.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from siglip_jax.configs.configuration import VisionConfig
from siglip_jax.models.encoder import MLP, LayerNorm, Options
from siglip_jax.models.initializers import Initializer
from siglip_jax.models.products import Dense, Projection, dense_product, matmul

WEIGHTS = "weights"  # name of the attention weights, (batch, tokens, heads), in the collection "intermediates"


class ProbeAttention(nn.Module):
    """Attention of one query, the same for all examples, to their tokens; the parameters are those of `Attention`.

    Neither keys nor values of the tokens are computed. The key projection is applied to the query instead, transposed;
    its bias changes no weight. The value projection is applied to the averages of the tokens, one average a head.
    """

    num_heads: int
    kernel_init: Initializer
    out_kernel_init: Initializer
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        query_from: Float[Array, "1 width"],
        tokens: Float[Array, "batch tokens width"],
        bias: Float[Array, "batch 1 1 tokens"] | None = None,
    ) -> Float[Array, "batch width"]:
        tokens, width, heads = tokens.astype(self.dtype), tokens.shape[-1], self.num_heads
        layer = {"features": width, "dtype": self.dtype, "param_dtype": self.param_dtype}
        query = Dense(kernel_init=self.kernel_init, name="q_proj", **layer)(query_from)
        of_keys, _ = Projection(kernel_init=self.kernel_init, name="k_proj", **layer)(width)
        of_values, of_value = Projection(kernel_init=self.kernel_init, name="v_proj", **layer)(width)
        split = of_keys.reshape(width, heads, -1)
        query = query.reshape(heads, -1, 1)
        on_tokens = matmul(jnp.swapaxes(split, 0, 1), query)[..., 0].T  # (width, heads)
        wide = jnp.float32 if jnp.dtype(self.dtype).itemsize < 4 else self.dtype
        scores = dense_product(tokens, on_tokens, wide) / math.sqrt(split.shape[-1])
        if bias is not None:
            scores = scores + jnp.swapaxes(bias[:, 0], 1, 2).astype(scores.dtype)
        weights = jax.nn.softmax(scores, axis=1).astype(self.dtype)
        self.sow("intermediates", WEIGHTS, weights)  # nothing unless the caller asks for the collection
        averages = matmul(jnp.swapaxes(weights, 1, 2), tokens)  # (batch, heads, width)
        by_head = jnp.swapaxes(of_values.reshape(width, heads, -1), 0, 1)
        values = jnp.swapaxes(matmul(jnp.swapaxes(averages, 0, 1), by_head), 0, 1).reshape(-1, width)
        return Dense(kernel_init=self.out_kernel_init, name="out_proj", **layer)(values + of_value[None])


class PoolingHead(nn.Module):
    """Multihead attention pooling (`SiglipMultiheadAttentionPoolingHead`); the probe itself is not added back."""

    config: VisionConfig
    options: Options

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch patches width"], bias: Float[Array, "..."] | None = None
    ) -> Float[Array, "batch width"]:
        c, inits, types = self.config, self.options.inits, self.options.types
        probe = self.param("probe", inits.probe, (1, 1, c.hidden_size), self.options.param_dtype)
        attention = ProbeAttention(
            c.num_attention_heads,
            kernel_init=inits.pool_qkv,
            out_kernel_init=inits.pool_out,
            name="attention",
            **types,
        )
        y = attention(jnp.asarray(probe)[0], x, bias)
        mlp = MLP(c.intermediate_size, c.hidden_act, self.options, name="mlp")
        y = y + mlp(LayerNorm(c.layer_norm_eps, name="layernorm", **types)(y))
        return y
