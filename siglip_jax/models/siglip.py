"""The whole model and its two towers as stand-alone modules, and what they share with those of `naflex`.

Mirrors `SiglipModel`, `SiglipTextModel` and `SiglipVisionModel`. Differences: images are channels last, the methods
`get_*_features` return arrays, and embeddings are normalised and compared in float32 whatever the compute type.
"""

from typing import Any, ClassVar

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from siglip_jax.configs.configuration import SiglipConfig, SiglipTextConfig, SiglipVisionConfig
from siglip_jax.losses.sigmoid import pairwise_logits, sigmoid_loss_of_logits
from siglip_jax.models.outputs import SiglipOutput, TowerOutput
from siglip_jax.models.pretrained import PretrainedModule
from siglip_jax.models.text import TextTransformer
from siglip_jax.models.vision import ImageTransformer, VisionTransformer, check_pixels


def check_ids(name: str, ids: Any) -> Int[Array, "batch tokens"]:
    """Returns a batch of token or position ids as a jax array.

    Raises:
      ValueError: with the shape and type expected and found.
    """
    ids = jnp.asarray(ids)
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"{name} must be (batch, tokens) integers, got shape {ids.shape} of {ids.dtype}")
    return ids


def normalize(x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Returns float32 vectors of length 1. As in the reference there is no epsilon: a zero vector gives NaN."""
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))


class SiglipTextModel(PretrainedModule):
    """The text tower alone; see `PretrainedModule` for the fields."""

    config: SiglipTextConfig

    def setup(self) -> None:
        self.text_model = TextTransformer(self.config, self.options)

    def __call__(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        deterministic: bool = True,
    ) -> TowerOutput:
        """Encodes token ids (batch, tokens); `pooler_output` is the embedding, not normalised."""
        input_ids = check_ids("input_ids", input_ids)
        position_ids = None if position_ids is None else check_ids("position_ids", position_ids)
        return self.text_model(
            input_ids, attention_mask, position_ids, output_hidden_states, output_attentions, deterministic
        )


class SiglipVisionModel(PretrainedModule):
    """The image tower alone; see `PretrainedModule` for the fields."""

    config: SiglipVisionConfig

    def setup(self) -> None:
        self.vision_model = VisionTransformer(self.config, self.options)

    def __call__(
        self,
        pixel_values: ArrayLike,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        deterministic: bool = True,
    ) -> TowerOutput:
        """Encodes images (batch, height, width, channel).

        `pooler_output` is the embedding, not normalised, or None without a pooling head.
        """
        pixel_values = check_pixels(pixel_values, self.config, interpolate_pos_encoding)
        return self.vision_model(
            pixel_values, interpolate_pos_encoding, output_hidden_states, output_attentions, deterministic
        )


class TwoTowers(PretrainedModule):
    """Both towers and the temperature and bias of the sigmoid loss; each family adds what depends on the image tower.

    The fields are those of `PretrainedModule`.
    """

    config: SiglipConfig

    tower_class: ClassVar[type[ImageTransformer]]

    def setup(self) -> None:
        if not self.config.vision_config.vision_use_head:
            name = type(self).__name__
            alone = name.replace("Model", "VisionModel")
            raise ValueError(f"{name} needs vision_use_head=True, got False; load {alone} instead")
        inits = self.options.inits
        self.text_model = TextTransformer(self.config.text_config, self.options)
        self.vision_model = self.tower_class(self.config.vision_config, self.options)
        self.logit_scale = self.param("logit_scale", inits.logit_scale, (1,), jnp.float32)
        self.logit_bias = self.param("logit_bias", inits.logit_bias, (1,), jnp.float32)

    def encode_text(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        deterministic: bool = True,
    ) -> TowerOutput:
        """Returns all that the text tower makes of token ids (texts, tokens)."""
        input_ids = check_ids("input_ids", input_ids)
        position_ids = None if position_ids is None else check_ids("position_ids", position_ids)
        return self.text_model(
            input_ids, attention_mask, position_ids, output_hidden_states, output_attentions, deterministic
        )

    def compare(self, text: TowerOutput, vision: TowerOutput, return_loss: bool) -> SiglipOutput:
        """Compares every image with every text."""
        text_embeds, image_embeds = normalize(text.embedding), normalize(vision.embedding)
        logits_per_image = pairwise_logits(image_embeds, text_embeds, self.logit_scale, self.logit_bias)
        return SiglipOutput(
            loss=sigmoid_loss_of_logits(logits_per_image) if return_loss else None,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.T,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=vision,
        )

    def get_text_features(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "texts embedding"]:
        """Returns the pooled embeddings of token ids (texts, tokens), not normalised."""
        return self.encode_text(input_ids, attention_mask, position_ids, deterministic=deterministic).embedding


class SiglipModel(TwoTowers):
    """Both towers and the temperature and bias of the sigmoid loss; the fields are those of `PretrainedModule`."""

    tower_class = VisionTransformer

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        pixel_values: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        return_loss: bool = False,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        deterministic: bool = True,
    ) -> SiglipOutput:
        """Compares every image with every text.

        Args:
          input_ids: (texts, tokens) integers.
          pixel_values: (images, height, width, channel), floating point.
          attention_mask: (texts, tokens), 1 to attend; published models were trained without one.
          position_ids: (texts or 1, tokens) integers, 0, 1, 2, … if None.
          return_loss: also the sigmoid loss, with images and texts matched by row.
          interpolate_pos_encoding: accept images of another size, resizing the position table as the reference does.
          deterministic: False switches attention dropout on and needs the random stream "dropout".

        Raises:
          ValueError: if one of the two inputs is missing or of the wrong shape.
        """
        if input_ids is None or pixel_values is None:
            missing = "input_ids" if input_ids is None else "pixel_values"
            raise ValueError(f"{missing} is missing; for one tower use get_text_features or get_image_features")
        outputs = output_hidden_states, output_attentions, deterministic
        pixel_values = check_pixels(pixel_values, self.config.vision_config, interpolate_pos_encoding)
        text = self.encode_text(input_ids, attention_mask, position_ids, *outputs)
        vision = self.vision_model(pixel_values, interpolate_pos_encoding, *outputs)
        return self.compare(text, vision, return_loss)

    def get_image_features(
        self,
        pixel_values: ArrayLike,
        interpolate_pos_encoding: bool = False,
        deterministic: bool = True,
    ) -> Float[Array, "images embedding"]:
        """Returns the pooled embeddings of images (images, height, width, channel), not normalised."""
        pixel_values = check_pixels(pixel_values, self.config.vision_config, interpolate_pos_encoding)
        return self.vision_model(pixel_values, interpolate_pos_encoding, deterministic=deterministic).embedding
