"""The text tower.

Mirrors `SiglipTextTransformer`: there is no causal mask, no mask at all unless one is given, and the embedding is read
from the last position, padding or not, as in training.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from siglip_jax.configs.configuration import SiglipTextConfig
from siglip_jax.models.attention import mask_to_bias
from siglip_jax.models.encoder import Embedding, Encoder, LayerNorm, Options
from siglip_jax.models.outputs import TowerOutput
from siglip_jax.models.products import Dense
from siglip_jax.parallel.mesh import check_sharding


def check_ids(name: str, ids: ArrayLike, count: int) -> None:
    """Raises a `ValueError` unless all ids are rows of a table; ids that are being traced are not checked.

    Args:
      name: name of the argument, for the error.
      ids: integers of any shape.
      count: number of rows of the table.
    """
    if isinstance(ids, jax.core.Tracer) or isinstance(ids, jax.Array) and not ids.is_fully_addressable:
        return
    found = np.asarray(ids)
    if found.size and not 0 <= found.min() <= found.max() < count:
        wrong = int(found.min() if found.min() < 0 else found.max())
        raise ValueError(f"{name} must be 0 to {count - 1}, got {wrong}; use the tokenizer of this model")


class TextEmbeddings(nn.Module):
    """Sum of token and position embeddings."""

    config: SiglipTextConfig
    options: Options

    @nn.compact
    def __call__(self, input_ids: Array, position_ids: Array | None = None) -> Array:
        c, init = self.config, self.options.inits.embedding
        check_ids("input_ids", input_ids, c.vocab_size)
        table = functools.partial(Embedding, width=c.hidden_size, embedding_init=init, **self.options.types)
        if position_ids is None:
            position_ids = jnp.arange(input_ids.shape[1])[None]
        else:
            check_ids("position_ids", position_ids, c.max_position_embeddings)
        tokens = table(c.vocab_size, name="token_embedding")(input_ids)
        positions = table(c.max_position_embeddings, name="position_embedding")(position_ids)
        return tokens + jnp.broadcast_to(positions, tokens.shape)


class TextTransformer(nn.Module):
    """Embeddings, encoder, final layer norm, and the linear head on the last position."""

    config: SiglipTextConfig
    options: Options

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "batch tokens"],
        attention_mask: ArrayLike | None = None,
        position_ids: Int[Array, "#batch tokens"] | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        deterministic: bool = True,
    ) -> TowerOutput:
        check_sharding(input_ids)
        most = self.config.max_position_embeddings
        if input_ids.shape[1] > most:
            raise ValueError(
                f"input_ids must have at most {most} tokens per text, got {input_ids.shape[1]}; truncate the texts, as"
                " the processor does by default"
            )
        if input_ids.shape[1] < most and attention_mask is None:
            warnings.warn(
                f"input_ids has {input_ids.shape[1]} tokens per text, and the model was trained on texts padded to"
                f" {most}: every score depends on the padding; pad with padding='max_length', as the processor does by"
                " default",
                stacklevel=2,
            )
        types, init = self.options.types, self.options.inits.projection
        x = TextEmbeddings(self.config, self.options, name="embeddings")(input_ids, position_ids)
        x, hidden_states, attentions = Encoder(self.config, self.options, name="encoder")(
            x, mask_to_bias(attention_mask), output_hidden_states, output_attentions, deterministic
        )
        x = LayerNorm(self.config.layer_norm_eps, name="final_layer_norm", **types)(x)
        head = Dense(self.config.embedding_size, kernel_init=init, name="head", **types)
        return TowerOutput(x, head(x[:, -1]), hidden_states, attentions)
