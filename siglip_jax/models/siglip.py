"""The whole model and its two towers as stand-alone modules, and the parts they share with the modules of `naflex`.

Mirrors `SiglipModel`, `SiglipTextModel` and `SiglipVisionModel`. Differences: images are channels last, the methods
`get_*_features` return arrays, and embeddings are normalised and compared in float32 whatever the compute dtype.
"""

from typing import Any, ClassVar

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from siglip_jax.configs.configuration import SiglipConfig, SiglipTextConfig, SiglipVisionConfig
from siglip_jax.losses.sigmoid import pairwise_logits, sigmoid_loss_of_logits
from siglip_jax.models.elementwise import normalize
from siglip_jax.models.features import exit_at
from siglip_jax.models.outputs import SiglipOutput, TowerOutput
from siglip_jax.models.pretrained import PretrainedModule
from siglip_jax.models.text import TextTransformer
from siglip_jax.models.vision import ImageTransformer, VisionTransformer, check_patch_mask, check_pixels


def check_ids(name: str, ids: Any) -> Int[Array, "batch tokens"]:
    """Returns a batch of token or position ids as a jax array.

    Raises:
      ValueError: if the ids are not (batch, tokens) integers.
    """
    ids = jnp.asarray(ids)
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"{name} must be (batch, tokens) integers, got shape {ids.shape} of {ids.dtype}")
    return ids


class SiglipTextModel(PretrainedModule):
    """The text tower alone.

    No mask is causal and padding is attended to, as in training; the embedding is read from the last position.

    Source: `SiglipTextModel` of `transformers`.

    Attributes:
      config: sizes of the tower, a `SiglipTextConfig`.
      dtype: compute dtype; layer norms and softmax are computed in float32 whatever it is.
      param_dtype: dtype of freshly initialised parameters.
      attn_implementation: "auto", "xla", "eager", "cudnn" (NVIDIA GPUs) or "pallas" (TPUs). Only "eager" returns
        attention weights; "auto" is the fused kernel of the device where that runs and pays, else "xla".
      remat: what the backward pass recomputes: None (nothing), "full" (everything), "dots" (everything but matrix
        products), "dots_with_no_batch_dims" (everything but matrix products without batch dimensions) or
        "attention_and_mlp_input" (everything but what attention computes and what the MLP takes).
      scan_layers: whether the layers are stacked on a leading axis and run by `lax.scan`, so that compile time does not
        grow with depth.
      init_scheme: initialisers of fresh parameters, "paper" (those of big_vision) or "reference" (those of
        `transformers`).
      mesh: mesh over whose axes `data` and `fsdp` the batch is sharded; None: the mesh of `jax.set_mesh`, if any.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import siglip_jax
      >>> model, params = siglip_jax.SiglipTextModel.from_pretrained(siglip_jax.assets.BUNDLED_MODEL)
      >>> ids = jnp.ones((3, 16), jnp.int32)
      >>> jax.eval_shape(lambda: model.apply({"params": params}, ids).embedding).shape
      (3, 192)
    """

    config: SiglipTextConfig

    def setup(self) -> None:
        """Builds the tower."""
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
        """Encodes texts.

        Args:
          input_ids: token ids, (texts, tokens) integers, padded to the length the model was trained with. An id outside
            the vocabulary is an error, and under `jit` NaN for its text.
          attention_mask: (texts, tokens), 1 for tokens to attend to and 0 for others, or an additive bias that
            broadcasts to (texts, heads, tokens, tokens); None: all tokens. Published models were trained without one.
          position_ids: position of each token, (texts or 1, tokens) integers; None: 0, 1, 2, ….
          output_hidden_states: whether to return the embeddings and the output of each layer.
          output_attentions: whether to return the attention weights; needs `attn_implementation="eager"`.
          deterministic: False switches attention dropout on and needs the random stream "dropout".

        Returns:
          The output of the tower; its `embedding` is (texts, embedding), not normalised.

        Raises:
          ValueError: if an input has the wrong shape or dtype, or the texts have more tokens than the model positions.
        """
        input_ids = check_ids("input_ids", input_ids)
        position_ids = None if position_ids is None else check_ids("position_ids", position_ids)
        return self.text_model(
            input_ids, attention_mask, position_ids, output_hidden_states, output_attentions, deterministic
        )


class FixedResolution(PretrainedModule):
    """The methods that models with an image tower of fixed resolution share; subclasses build `vision_model`."""

    def get_patch_features(
        self, pixel_values: ArrayLike, layer: int = -1, normalize: bool = True, as_map: bool = True
    ) -> Float[Array, "images rows columns width"] | Float[Array, "images patches width"]:
        """Returns one vector per patch, from any layer and for images of any size. Later layers are not computed.

        Args:
          pixel_values: (images, height, width, channels) floating point, in the range [-1, 1] that the processor makes.
            For images of another size than the model's the position table is resized as in the reference.
          layer: 0 for the embeddings that enter the first layer, i for the output of layer i, counted from 1, and a
            negative number as in Python: -1 for the last layer, -2 for the one before it. An integer, not traced.
          normalize: whether the last layer is followed by the final layer norm; other layers never are.
          as_map: whether patches are returned by row and column, from the top left, instead of in one axis.

        Returns:
          (images, rows, columns, width) with `as_map`, else (images, rows * columns, width), in the compute dtype. The
          default is `last_hidden_state` of the tower; `normalize=False` gives its `hidden_states[layer]`.

        Raises:
          ValueError: if `pixel_values` has the wrong shape or dtype, or the tower has no such layer.

        Example:
          Images of 96 x 64 pixels in patches of 8 x 8, where the model was trained on 64 x 64:

          >>> import jax
          >>> import jax.numpy as jnp
          >>> import siglip_jax
          >>> model, params = siglip_jax.SiglipModel.from_pretrained(siglip_jax.assets.BUNDLED_MODEL)
          >>> images = jnp.zeros((2, 96, 64, 3))
          >>> def features(**options):
          ...     return model.apply({"params": params}, images, **options, method="get_patch_features")
          >>> jax.eval_shape(features).shape, jax.eval_shape(lambda: features(layer=-2, as_map=False)).shape
          ((2, 12, 8, 192), (2, 96, 192))
        """
        config = getattr(self.config, "vision_config", self.config)
        pixels = check_pixels(pixel_values, config, True)
        exit = exit_at(layer, normalize, config.num_hidden_layers)
        x = self.vision_model(pixels, True, exit=exit).last_hidden_state
        if not as_map:
            return x
        return x.reshape(len(x), *(side // config.patch_size for side in pixels.shape[1:3]), -1)


class SiglipVisionModel(FixedResolution):
    """The image tower of fixed resolution alone.

    `last_hidden_state` and `hidden_states` hold one token per patch, row by row from the top left: the patch of row r
    and column c of an image of C columns is token r * C + c. There is no class token.

    Source: `SiglipVisionModel` of `transformers`.

    Attributes:
      config: sizes of the tower, a `SiglipVisionConfig`.
      dtype: compute dtype; layer norms and softmax are computed in float32 whatever it is.
      param_dtype: dtype of freshly initialised parameters.
      attn_implementation: "auto", "xla", "eager", "cudnn" (NVIDIA GPUs) or "pallas" (TPUs). Only "eager" returns
        attention weights; "auto" is the fused kernel of the device where that runs and pays, else "xla".
      remat: what the backward pass recomputes: None (nothing), "full" (everything), "dots" (everything but matrix
        products), "dots_with_no_batch_dims" (everything but matrix products without batch dimensions) or
        "attention_and_mlp_input" (everything but what attention computes and what the MLP takes).
      scan_layers: whether the layers are stacked on a leading axis and run by `lax.scan`, so that compile time does not
        grow with depth.
      init_scheme: initialisers of fresh parameters, "paper" (those of big_vision) or "reference" (those of
        `transformers`).
      mesh: mesh over whose axes `data` and `fsdp` the batch is sharded; None: the mesh of `jax.set_mesh`, if any.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import siglip_jax
      >>> model, params = siglip_jax.SiglipVisionModel.from_pretrained(siglip_jax.assets.BUNDLED_MODEL)
      >>> images = jnp.zeros((2, 64, 64, 3))
      >>> jax.eval_shape(lambda: model.apply({"params": params}, images, method="get_patch_features")).shape
      (2, 8, 8, 192)
    """

    config: SiglipVisionConfig

    def setup(self) -> None:
        """Builds the tower."""
        self.vision_model = VisionTransformer(self.config, self.options)

    def __call__(
        self,
        pixel_values: ArrayLike,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        deterministic: bool = True,
        patch_attention_mask: ArrayLike | None = None,
    ) -> TowerOutput:
        """Encodes images.

        Args:
          pixel_values: (images, height, width, channels) floating point, in the range [-1, 1] that the processor makes.
          interpolate_pos_encoding: whether to accept images of another size, for which the position table is resized as
            in the reference. A tower with `config.bucket_positions` accepts any size and resizes nothing.
          output_hidden_states: whether to return the embeddings and the output of each layer.
          output_attentions: whether to return the attention weights; needs `attn_implementation="eager"`.
          deterministic: False switches attention dropout on and needs the random stream "dropout".
          patch_attention_mask: (images, rows, columns), 1 for a patch and 0 for padding at the right and bottom, for
            images of several sizes in one batch; None: all are patches. With `config.bucket_positions` the positions
            follow from the rows and columns that are not padding, as in Idefics 2.

        Returns:
          The output of the tower; its `pooler_output` is the embedding, (images, embedding), not normalised, or None
          for a tower without a pooling head.

        Raises:
          ValueError: if `pixel_values` or `patch_attention_mask` has the wrong shape or dtype.
        """
        pixel_values = check_pixels(pixel_values, self.config, interpolate_pos_encoding)
        return self.vision_model(
            pixel_values,
            interpolate_pos_encoding,
            output_hidden_states,
            output_attentions,
            deterministic,
            patch_attention_mask=check_patch_mask(patch_attention_mask, pixel_values, self.config),
        )


class TwoTowers(PretrainedModule):
    """Both towers and the temperature and bias of the sigmoid loss; subclasses add the methods that take images."""

    config: SiglipConfig

    tower_class: ClassVar[type[ImageTransformer]]

    def setup(self) -> None:
        """Builds both towers and the parameters `logit_scale`, the logarithm of the temperature, and `logit_bias`.

        Raises:
          ValueError: if the image tower has no pooling.
        """
        vision = self.config.vision_config
        if not (vision.vision_use_head or vision.average_pooling):
            name = type(self).__name__
            alone = name.replace("Model", "VisionModel")
            raise ValueError(
                f"vision_use_head or average_pooling must be True for {name}, got False; use {alone} instead"
            )
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
        """Returns the whole output of the text tower.

        Args:
          input_ids: token ids, (texts, tokens) integers, padded to the length the model was trained with. An id outside
            the vocabulary is an error, and under `jit` NaN for its text.
          attention_mask: (texts, tokens), 1 for tokens to attend to and 0 for others, or an additive bias that
            broadcasts to (texts, heads, tokens, tokens); None: all tokens. Published models were trained without one.
          position_ids: position of each token, (texts or 1, tokens) integers; None: 0, 1, 2, ….
          output_hidden_states: whether to return the embeddings and the output of each layer.
          output_attentions: whether to return the attention weights; needs `attn_implementation="eager"`.
          deterministic: False switches attention dropout on and needs the random stream "dropout".

        Returns:
          The output of the tower; its `embedding` is (texts, embedding), not normalised.

        Raises:
          ValueError: if an input has the wrong shape or dtype, or the texts have more tokens than the model positions.
        """
        input_ids = check_ids("input_ids", input_ids)
        position_ids = None if position_ids is None else check_ids("position_ids", position_ids)
        return self.text_model(
            input_ids, attention_mask, position_ids, output_hidden_states, output_attentions, deterministic
        )

    def compare(self, text: TowerOutput, vision: TowerOutput, return_loss: bool) -> SiglipOutput:
        """Returns the logits of every pair of an image and a text.

        Args:
          text: output of the text tower.
          vision: output of the image tower.
          return_loss: whether to return the sigmoid loss too, with images and texts matched by row.

        Returns:
          Logits, normalised embeddings, and the outputs of both towers.

        Raises:
          ValueError: if the loss is asked for and the numbers of images and texts differ.
        """
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
        """Returns the embeddings of texts.

        Args:
          input_ids: token ids, (texts, tokens) integers, padded to the length the model was trained with. An id outside
            the vocabulary is an error, and under `jit` NaN for its text.
          attention_mask: (texts, tokens), 1 for tokens to attend to and 0 for others, or an additive bias that
            broadcasts to (texts, heads, tokens, tokens); None: all tokens. Published models were trained without one.
          position_ids: position of each token, (texts or 1, tokens) integers; None: 0, 1, 2, ….
          deterministic: False switches attention dropout on and needs the random stream "dropout".

        Returns:
          (texts, embedding) in the compute dtype, not normalised.

        Raises:
          ValueError: if an input has the wrong shape or dtype, or the texts have more tokens than the model positions.
        """
        return self.encode_text(input_ids, attention_mask, position_ids, deterministic=deterministic).embedding


class SiglipModel(TwoTowers, FixedResolution):
    """Both towers of fixed resolution and the temperature and bias of the sigmoid loss.

    Source: `SiglipModel` of `transformers`; Zhai et al. 2023, arXiv 2303.15343.

    Attributes:
      config: sizes of both towers, a `SiglipConfig`.
      dtype: compute dtype of the towers; layer norms, softmax and logits are computed in float32 whatever it is.
      param_dtype: dtype of freshly initialised parameters; `logit_scale` and `logit_bias` are always float32.
      attn_implementation: "auto", "xla", "eager", "cudnn" (NVIDIA GPUs) or "pallas" (TPUs). Only "eager" returns
        attention weights; "auto" is the fused kernel of the device where that runs and pays, else "xla".
      remat: what the backward pass recomputes: None (nothing), "full" (everything), "dots" (everything but matrix
        products), "dots_with_no_batch_dims" (everything but matrix products without batch dimensions) or
        "attention_and_mlp_input" (everything but what attention computes and what the MLP takes).
      scan_layers: whether the layers of each tower are stacked on a leading axis and run by `lax.scan`, so that compile
        time does not grow with depth.
      init_scheme: initialisers of fresh parameters, "paper" (those of big_vision: temperature 10, bias -10) or
        "reference" (those of `transformers`: temperature 1, bias 0).
      mesh: mesh over whose axes `data` and `fsdp` the batch is sharded; None: the mesh of `jax.set_mesh`, if any.

    Example:
      >>> import jax
      >>> import siglip_jax
      >>> model, params = siglip_jax.SiglipModel.from_pretrained(siglip_jax.assets.BUNDLED_MODEL)
      >>> processor = siglip_jax.SiglipProcessor.from_pretrained(siglip_jax.assets.BUNDLED_MODEL)
      >>> inputs = processor(siglip_jax.assets.EXAMPLES / "horse.png", ["a horse", "a lemon"])
      >>> logits = jax.jit(lambda p, x: model.apply({"params": p}, **x).logits_per_image)(params, dict(inputs))
      >>> logits.shape, bool(logits[0, 0] > logits[0, 1])
      ((1, 2), True)
    """

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
          input_ids: token ids, (texts, tokens) integers, padded to the length the model was trained with. An id outside
            the vocabulary is an error, and under `jit` NaN for its text.
          pixel_values: (images, height, width, channels) floating point, in the range [-1, 1] that the processor makes.
          attention_mask: (texts, tokens), 1 for tokens to attend to and 0 for others, or an additive bias that
            broadcasts to (texts, heads, tokens, tokens); None: all tokens. Published models were trained without one.
          position_ids: position of each token, (texts or 1, tokens) integers; None: 0, 1, 2, ….
          return_loss: whether to return the sigmoid loss too, with images and texts matched by row.
          interpolate_pos_encoding: whether to accept images of another size, for which the position table is resized as
            in the reference.
          output_hidden_states: whether to return the embeddings and the output of each layer of both towers.
          output_attentions: whether to return the attention weights; needs `attn_implementation="eager"`.
          deterministic: False switches attention dropout on and needs the random stream "dropout".

        Returns:
          Logits (images, texts) and (texts, images), normalised embeddings, the outputs of both towers, and the loss if
          asked for.

        Raises:
          ValueError: if one of the two inputs is missing or an input has the wrong shape or dtype.
        """
        if input_ids is None or pixel_values is None:
            missing = "input_ids" if input_ids is None else "pixel_values"
            raise ValueError(
                f"{missing} must be given, got None; for one tower use get_text_features or get_image_features"
            )
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
        """Returns the embeddings of images.

        Args:
          pixel_values: (images, height, width, channels) floating point, in the range [-1, 1] that the processor makes.
          interpolate_pos_encoding: whether to accept images of another size, for which the position table is resized as
            in the reference.
          deterministic: False switches attention dropout on and needs the random stream "dropout".

        Returns:
          (images, embedding) in the compute dtype, not normalised.

        Raises:
          ValueError: if `pixel_values` has the wrong shape or dtype.

        Example:
          >>> import jax
          >>> import jax.numpy as jnp
          >>> import siglip_jax
          >>> model, params = siglip_jax.SiglipModel.from_pretrained(siglip_jax.assets.BUNDLED_MODEL)
          >>> images = jnp.zeros((2, 64, 64, 3))
          >>> jax.eval_shape(lambda: model.apply({"params": params}, images, method="get_image_features")).shape
          (2, 192)
        """
        pixel_values = check_pixels(pixel_values, self.config.vision_config, interpolate_pos_encoding)
        return self.vision_model(pixel_values, interpolate_pos_encoding, deterministic=deterministic).embedding
