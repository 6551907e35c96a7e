"""What the modules return: pytrees with the reference's field names in the reference's order.

Under `jax.vmap` and `jax.pmap` each array gets an axis more in front.
"""

import dataclasses
from typing import Any

from flax import struct
from jaxtyping import Array, Float


class _Output:
    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the fields that are not None, in order."""
        values = (getattr(self, f.name) for f in dataclasses.fields(self))  # type: ignore[arg-type]
        return tuple(v for v in values if v is not None)

    def __getitem__(self, key: int | slice | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]


@struct.dataclass
class TowerOutput(_Output):
    """Output of one tower (the reference's `BaseModelOutputWithPooling`); T tokens, D width, E embedding, H heads.

    `hidden_states` has one entry more than there are layers: the embeddings, then the output of each layer; the last
    one is before the final normalisation, `last_hidden_state` after it.
    """

    last_hidden_state: Float[Array, "*devices batch tokens width"]
    pooler_output: Float[Array, "*devices batch embedding"] | None = None
    hidden_states: tuple[Float[Array, "*devices batch tokens width"], ...] | None = None
    attentions: tuple[Float[Array, "*devices batch heads tokens tokens"], ...] | None = None

    @property
    def embedding(self) -> Float[Array, "*devices batch embedding"]:
        """`pooler_output`; a ValueError where the tower has no pooling head."""
        if self.pooler_output is None:
            raise ValueError("this tower has no pooling head (vision_use_head=False), so there is no embedding")
        return self.pooler_output


@struct.dataclass
class SiglipOutput(_Output):
    """Output of `SiglipModel`; N images, M texts, E embedding. The embeddings are L2-normalised."""

    loss: Float[Array, "*devices"] | None = None
    logits_per_image: Float[Array, "*devices images texts"] | None = None
    logits_per_text: Float[Array, "*devices texts images"] | None = None
    text_embeds: Float[Array, "*devices texts embedding"] | None = None
    image_embeds: Float[Array, "*devices images embedding"] | None = None
    text_model_output: TowerOutput | None = None
    vision_model_output: TowerOutput | None = None


@struct.dataclass
class ImageClassifierOutput(_Output):
    """Output of `SiglipForImageClassification`."""

    loss: Float[Array, "*devices"] | None = None
    logits: Float[Array, "*devices batch labels"] | None = None
    hidden_states: tuple[Float[Array, "*devices batch tokens width"], ...] | None = None
    attentions: tuple[Float[Array, "*devices batch heads tokens tokens"], ...] | None = None
