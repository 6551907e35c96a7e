"""The caption decoder: a transformer of the text tower's shape that attends to the patches of an image.

It predicts the tokens of a caption one after the other, or all at once from mask tokens alone (Wan et al. 2024, arXiv
2403.19596; Tschannen et al. 2023, arXiv 2306.07915). It trains the image tower and is no part of a released model.
"""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from siglip_jax.configs.configuration import TextConfig
from siglip_jax.models.attention import Attention, mask_to_bias
from siglip_jax.models.encoder import MLP, Embedding, LayerNorm, Options, recomputed
from siglip_jax.models.text import check_ids
from siglip_jax.parallel.mesh import check_sharding, keep_batch_sharded


class DecoderLayer(nn.Module):
    """One layer; returns its output and None, as `lax.scan` needs it."""

    config: TextConfig
    options: Options

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        bias: Float[Array, "..."],
        image_states: Float[Array, "batch patches image_width"],
        image_bias: Float[Array, "..."] | None,
    ) -> tuple[Float[Array, "batch tokens width"], None]:
        c, options = self.config, self.options
        norm = functools.partial(LayerNorm, c.layer_norm_eps, **options.types)
        # The kernel for TPUs takes neither a causal mask nor other keys than queries.
        name = "auto" if options.attn_implementation == "pallas" else options.attn_implementation
        attention = functools.partial(
            Attention,
            c.num_attention_heads,
            kernel_init=options.inits.attention,
            implementation=name,
            mesh=options.mesh,
            **options.types,
        )
        x = x + attention(name="self_attn")(norm(name="layer_norm1")(x), bias)[0]
        x = x + attention(name="cross_attn")(norm(name="layer_norm2")(x), image_bias, image_states)[0]
        x = x + MLP(c.intermediate_size, c.hidden_act, options, name="mlp")(norm(name="layer_norm3")(x))
        return x, None


class CaptionDecoder(nn.Module):
    """Token and position embeddings, layers with causal self-attention and attention to patches, final layer norm.

    The logits of a token are the products of its state with the rows of `token_embedding`: pass
    `params["token_embedding"]["embedding"]` to `captioning_loss` with the ids as targets.

    Attributes:
      config: sizes of a text tower.
      options: how to compute. `attn_implementation="pallas"` is "auto" here.
      layers: number of layers; None: half of those of the configuration, at least one.
    """

    config: TextConfig
    options: Options
    layers: int | None = None

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "batch tokens"],
        image_states: Float[Array, "batch patches image_width"],
        image_mask: ArrayLike | None = None,
        parallel: Bool[Array, " batch"] | None = None,
    ) -> Float[Array, "batch tokens width"]:
        """Returns the state that predicts each token.

        Args:
          input_ids: ids of the captions, (batch, tokens), with at most `max_position_embeddings` tokens. They are
            shifted here: a state depends on the tokens before its own alone.
          image_states: hidden states of the patches, (batch, patches, image width), of any width.
          image_mask: (batch, patches), 1 for a patch and 0 for padding; None: there is no padding.
          parallel: whether the caption of each example is predicted at once, from the image and the positions alone,
            without any of its tokens; None: of no example.

        Raises:
          ValueError: if there are too many tokens, or an id is outside the vocabulary.
        """
        check_sharding(input_ids)
        c, options, count = self.config, self.options, input_ids.shape[1]
        if count > c.max_position_embeddings:
            raise ValueError(
                f"input_ids must have at most {c.max_position_embeddings} tokens per text, got {count}; truncate them"
            )
        check_ids("input_ids", input_ids, c.vocab_size)
        init = options.inits.embedding
        table = functools.partial(Embedding, width=c.hidden_size, embedding_init=init, **options.types)
        start, mask = (
            jnp.asarray(self.param(name, init, (1, c.hidden_size), options.param_dtype)).astype(options.dtype)[None]
            for name in ("start", "mask")
        )
        tokens = table(c.vocab_size, name="token_embedding")(input_ids)
        x = jnp.concatenate([jnp.broadcast_to(start, tokens[:, :1].shape), tokens[:, :-1]], axis=1)
        seen = jnp.tril(jnp.ones((count, count), bool))[None, None]
        if parallel is not None:
            x = jnp.where(parallel[:, None, None], mask, x)
            seen = seen | parallel[:, None, None, None]
        x = x + table(c.max_position_embeddings, name="position_embedding")(jnp.arange(count)[None])
        bias = jnp.where(seen, 0.0, jnp.finfo(jnp.float32).min).astype(jnp.float32)
        x = self._apply_layers(keep_batch_sharded(x, options.mesh), bias, image_states, mask_to_bias(image_mask))
        return LayerNorm(c.layer_norm_eps, name="final_layer_norm", **options.types)(x)

    def _apply_layers(self, x: Array, *others: Any) -> Array:
        options = self.options
        count = max(1, self.config.num_hidden_layers // 2) if self.layers is None else self.layers
        layer: Any = recomputed(DecoderLayer, options)
        if not options.scan_layers:
            for i in range(count):
                x, _ = layer(self.config, options, name=f"layers_{i}")(x, *others)
            return x
        axes = (nn.broadcast,) * len(others)
        stack: Any = nn.scan(
            layer, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=axes, length=count
        )
        return stack(self.config, options, name="layers")(x, *others)[0]
