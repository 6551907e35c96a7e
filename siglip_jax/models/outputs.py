"""Outputs of the modules: pytrees with the reference's field names in the reference's order.

Under `jax.vmap` and `jax.pmap` each array has one more leading axis.
"""

import dataclasses
from typing import Any

from flax import struct
from jaxtyping import Array, Float


class _Output:
    """Access by position and by name, as in the reference's `ModelOutput`."""

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the fields that are not None, in order."""
        values = (getattr(self, f.name) for f in dataclasses.fields(self))  # type: ignore[arg-type]
        return tuple(v for v in values if v is not None)

    def __getitem__(self, key: int | slice | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]


@struct.dataclass
class TowerOutput(_Output):
    """Output of one tower.

    The tokens of an image are its patches, row by row from the top left: the patch of row r and column c of an image of
    C columns is token r * C + c. There is no class token. In models of variable resolution padding follows.

    Source: `BaseModelOutputWithPooling` of `transformers`.

    Attributes:
      last_hidden_state: tokens after the final layer norm, (batch, tokens, width).
      pooler_output: embeddings, (batch, embedding), not normalised; None without a pooling head.
      hidden_states: one more entry than the tower has layers, each (batch, tokens, width): `hidden_states[0]` is the
        embeddings that enter the first layer, `hidden_states[i]` the output of layer i, counted from 1. The last entry
        precedes the final layer norm, `last_hidden_state` follows it. None unless `output_hidden_states=True`.
      attentions: attention weights of each layer, each (batch, heads, queries, keys), which sum to 1 over the keys
        unless dropout is active. None unless `output_attentions=True`.

    Example:
      >>> import jax.numpy as jnp
      >>> out = TowerOutput(jnp.ones((1, 16, 32)), pooler_output=jnp.ones((1, 32)))
      >>> out.embedding.shape, out["last_hidden_state"].shape, out[1].shape, len(out.to_tuple())
      ((1, 32), (1, 16, 32), (1, 32), 2)
    """

    last_hidden_state: Float[Array, "*devices batch tokens width"]
    pooler_output: Float[Array, "*devices batch embedding"] | None = None
    hidden_states: tuple[Float[Array, "*devices batch tokens width"], ...] | None = None
    attentions: tuple[Float[Array, "*devices batch heads tokens tokens"], ...] | None = None

    @property
    def embedding(self) -> Float[Array, "*devices batch embedding"]:
        """`pooler_output`; raises a ValueError for a tower without a pooling head."""
        if self.pooler_output is None:
            raise ValueError(
                "vision_use_head must be True for an embedding, got False; use last_hidden_state, since this tower has"
                " no pooling head"
            )
        return self.pooler_output


@struct.dataclass
class SiglipOutput(_Output):
    """Output of `SiglipModel` and `Siglip2Model`.

    Attributes:
      loss: sigmoid loss, a float32 scalar; None unless `return_loss=True`.
      logits_per_image: logits of every pair, (images, texts) float32; their sigmoid is the probability of a match.
      logits_per_text: transpose of `logits_per_image`, (texts, images) float32.
      text_embeds: L2-normalised embeddings of the texts, (texts, embedding) float32.
      image_embeds: L2-normalised embeddings of the images, (images, embedding) float32.
      text_model_output: output of the text tower.
      vision_model_output: output of the image tower.

    Example:
      >>> import jax.numpy as jnp
      >>> out = SiglipOutput(logits_per_image=jnp.zeros((1, 2)), logits_per_text=jnp.zeros((2, 1)))
      >>> out.logits_per_image.shape, out["logits_per_text"].shape, len(out.to_tuple())
      ((1, 2), (2, 1), 2)
    """

    loss: Float[Array, "*devices"] | None = None
    logits_per_image: Float[Array, "*devices images texts"] | None = None
    logits_per_text: Float[Array, "*devices texts images"] | None = None
    text_embeds: Float[Array, "*devices texts embedding"] | None = None
    image_embeds: Float[Array, "*devices images embedding"] | None = None
    text_model_output: TowerOutput | None = None
    vision_model_output: TowerOutput | None = None


@struct.dataclass
class ImageClassifierOutput(_Output):
    """Output of `SiglipForImageClassification` and `Siglip2ForImageClassification`.

    Attributes:
      loss: loss of `labels`, a float32 scalar; None unless `labels` are given.
      logits: (batch, labels) in the compute dtype; the mean of the patch tokens, (batch, width), with `num_labels=0`.
      hidden_states: embeddings, then the output of each layer, each (batch, tokens, width); None unless
        `output_hidden_states=True`.
      attentions: attention weights of each layer, each (batch, heads, tokens, tokens); None unless
        `output_attentions=True`.

    Example:
      >>> import jax.numpy as jnp
      >>> out = ImageClassifierOutput(logits=jnp.array([[0.5, -1.0, 2.0]]))
      >>> int(out.logits.argmax()), out.loss is None
      (2, True)
    """

    loss: Float[Array, "*devices"] | None = None
    logits: Float[Array, "*devices batch labels"] | None = None
    hidden_states: tuple[Float[Array, "*devices batch tokens width"], ...] | None = None
    attentions: tuple[Float[Array, "*devices batch heads tokens tokens"], ...] | None = None
