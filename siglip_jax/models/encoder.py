"""The transformer encoder that both towers share: pre-normalisation, attention, MLP.

Mirrors `SiglipEncoder`. With `scan_layers` the layers are one stacked layer run by `lax.scan`: the parameters have a
leading axis of layers under `layers` instead of `layers_0`, `layers_1`, …, and compile time does not grow with depth.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from siglip_jax.configs.configuration import TextConfig, VisionConfig
from siglip_jax.models.attention import Attention
from siglip_jax.models.elementwise import ACTIVATION_FUNCTIONS, layer_norm
from siglip_jax.models.initializers import Initializer, Initializers, initializers
from siglip_jax.models.products import PRODUCT, Dense
from siglip_jax.models.xla_attention import ATTENTION
from siglip_jax.parallel.mesh import keep_batch_sharded

MLP_INPUT = "mlp_input"  # name of the sum of a layer's input and its attention for `jax.checkpoint`
# Values of `remat`: what is kept from the forward pass; the backward pass recomputes everything else.
REMAT_POLICIES: dict[str, Callable[..., bool]] = {
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT, ATTENTION),
    "dots_with_no_batch_dims": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "attention_and_mlp_input": jax.checkpoint_policies.save_only_these_names(ATTENTION, MLP_INPUT),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """The fields that every module passes on unchanged: how to compute, as opposed to what."""

    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    attn_implementation: str = "auto"
    remat: str | None = None
    scan_layers: bool = False
    init_scheme: str = "paper"
    mesh: Mesh | None = None

    @property
    def types(self) -> dict[str, Any]:
        """Both dtypes as keyword arguments of a linen layer."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    @property
    def inits(self) -> Initializers:
        """The initialisers of the scheme."""
        return initializers(self.init_scheme)


class LayerNorm(nn.Module):
    """Layer normalisation in float32 whatever the compute dtype, with parameters `scale` and `bias`."""

    epsilon: float
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        return layer_norm(x, jnp.asarray(scale), jnp.asarray(bias), self.epsilon, self.dtype)


class Embedding(nn.Module):
    """A table of embeddings; only the rows that are looked up are converted to the compute dtype.

    An id outside the table, also a negative one, gets a row of NaN: a clamped or wrapped id is silently another one.
    """

    rows: int
    width: int
    embedding_init: Initializer
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.embedding = self.param("embedding", self.embedding_init, (self.rows, self.width), self.param_dtype)

    def __call__(self, ids: Array) -> Array:
        rows = jnp.asarray(self.embedding).at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return rows.astype(self.dtype)


class MLP(nn.Module):
    """`fc2(act(fc1(x)))`."""

    intermediate_size: int
    hidden_act: str
    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        inits = self.options.inits
        dense = functools.partial(Dense, kernel_init=inits.mlp, bias_init=inits.mlp_bias, **self.options.types)
        y = dense(self.intermediate_size, name="fc1")(x)
        return dense(x.shape[-1], activation=ACTIVATION_FUNCTIONS[self.hidden_act], name="fc2")(y)


class EncoderLayer(nn.Module):
    """One layer; returns its output twice, as `lax.scan` needs it: the carry, and the values to collect."""

    config: TextConfig | VisionConfig
    options: Options
    dropout: float
    output_hidden_states: bool
    output_attentions: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], bias: Float[Array, "..."] | None
    ) -> tuple[Array, tuple[Array | None, Array | None]]:
        options = self.options
        norm = functools.partial(LayerNorm, self.config.layer_norm_eps, **options.types)
        attention = Attention(
            self.config.num_attention_heads,
            kernel_init=options.inits.attention,
            dropout=self.dropout,
            implementation=options.attn_implementation,
            output_weights=self.output_attentions,
            mesh=options.mesh,
            name="self_attn",
            **options.types,
        )
        y, weights = attention(norm(name="layer_norm1")(x), bias)
        x = checkpoint_name(x + y, MLP_INPUT)
        mlp = MLP(self.config.intermediate_size, self.config.hidden_act, options, name="mlp")
        x = x + mlp(norm(name="layer_norm2")(x))
        return x, (x if self.output_hidden_states else None, weights)


def recomputed(layer_class: type[nn.Module], options: Options) -> type[nn.Module]:
    """Returns the class of layers whose backward pass recomputes what `options.remat` says.

    Raises:
      ValueError: if `remat` is unknown.
    """
    if options.remat is None:
        return layer_class
    if options.remat not in REMAT_POLICIES:
        raise ValueError(f"remat must be None or one of {tuple(REMAT_POLICIES)}, got {options.remat!r}")
    # A scan already keeps XLA from merging both computations; there the barrier would only cost time.
    return nn.remat(layer_class, policy=REMAT_POLICIES[options.remat], prevent_cse=not options.scan_layers)


class Encoder(nn.Module):
    """A stack of `EncoderLayer`."""

    config: TextConfig | VisionConfig
    options: Options

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        bias: Float[Array, "..."] | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        deterministic: bool = True,
        layers: int | None = None,
    ) -> tuple[Array, tuple[Array, ...] | None, tuple[Array, ...] | None]:
        """Returns the output of the last layer, the hidden states and the attention weights.

        The hidden states are the embeddings, then the output of each layer, before any final layer norm. With `layers`
        only that many layers are applied.
        """
        scan, layer_class = self.options.scan_layers, recomputed(EncoderLayer, self.options)
        fields: dict[str, Any] = {
            "config": self.config,
            "options": self.options,
            "dropout": 0.0 if deterministic else self.config.attention_dropout,
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
        }
        depth = self.config.num_hidden_layers
        count = depth if layers is None or self.is_initializing() else layers
        first = x = keep_batch_sharded(x, self.options.mesh)
        hidden: Any
        weights: Any
        if scan and count:
            stack: Any = nn.scan(
                layer_class,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=count,
            )
            if count < depth:
                stack = nn.map_variables(stack, "params", lambda tree: jax.tree.map(lambda p: p[:count], tree))
            x, (hidden, weights) = stack(**fields, name="layers")(x, bias)
        else:
            collected = []
            for i in range(count):
                x, out = layer_class(**fields, name=f"layers_{i}")(x, bias)
                collected.append(out)
            hidden = [h for h, _ in collected]
            weights = [w for _, w in collected]
        return (
            x,
            (first, *hidden) if output_hidden_states else None,
            tuple(weights) if output_attentions else None,
        )
