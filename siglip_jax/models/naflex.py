"""SigLIP 2 of variable resolution (NaFlex): each image keeps its proportions and has its own grid of patches.

Mirrors `Siglip2Model`, `Siglip2TextModel`, `Siglip2VisionModel` and `Siglip2ForImageClassification`. Images arrive as
patches, padded to one number of patches (`Siglip2ImageProcessor` does both); the position table is resized to the grid
of each image, and padding is masked out of every attention, the pooling and the mean. Differences from the reference
are those of the modules of fixed resolution. Grids are data, not shapes: one compiled program serves them all, and a
side may have as many patches as the whole image.
"""

from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from siglip_jax.configs.configuration import Siglip2VisionConfig
from siglip_jax.models.classifier import ImageClassifier
from siglip_jax.models.features import Exit, exit_at, map_size, padded_maps
from siglip_jax.models.outputs import ImageClassifierOutput, SiglipOutput, TowerOutput
from siglip_jax.models.patches import FlexibleEmbeddings, Patches, check_patches
from siglip_jax.models.pretrained import PretrainedModule
from siglip_jax.models.siglip import SiglipTextModel, TwoTowers
from siglip_jax.models.vision import ImageTransformer


class FlexibleTransformer(ImageTransformer):
    """The image tower of variable resolution."""

    config: Siglip2VisionConfig

    @nn.compact
    def __call__(
        self,
        patches: Patches,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        deterministic: bool = True,
        exit: Exit | None = None,
    ) -> TowerOutput:
        embeddings = FlexibleEmbeddings(self.config, self.options, name="embeddings")
        x = embeddings(patches.pixel_values, patches.spatial_shapes)
        return self.transform(x, patches.mask, output_hidden_states, output_attentions, deterministic, exit)


class VariableResolution(PretrainedModule):
    """The methods that models with an image tower of variable resolution share; subclasses build `vision_model`."""

    def get_patch_features(
        self,
        pixel_values: ArrayLike | None = None,
        pixel_attention_mask: ArrayLike | None = None,
        spatial_shapes: ArrayLike | None = None,
        layer: int = -1,
        normalize: bool = True,
        as_map: bool | tuple[int, int] = True,
    ) -> Float[Array, "images rows columns width"] | Float[Array, "images patches width"]:
        """Returns one vector per patch, from any layer. Later layers are not computed.

        Args:
          pixel_values: patches, (images, patches, pixels) floating point. The pixels of a patch are ordered by row,
            column and channel, the patches row by row from the top left, followed by padding.
          pixel_attention_mask: (images, patches), 1 for a patch and 0 for padding; None: padding is attended to, as in
            the reference.
          spatial_shapes: rows and columns of patches of each image, (images, 2) integers.
          layer: 0 for the embeddings that enter the first layer, i for the output of layer i, counted from 1, and a
            negative number as in Python: -1 for the last layer, -2 for the one before it. An integer, not traced.
          normalize: whether the last layer is followed by the final layer norm; other layers never are.
          as_map: True for maps that hold each image at the top left and zeros outside its grid, as large as the largest
            grid needs; a pair (rows, columns) for maps of that size, as needed within `jax.jit`, where the grids are
            not known. False for patches in one axis, where padding is not zeroed. `siglip_jax.models.map_mask` tells
            patches from padding.

        Returns:
          (images, rows, columns, width) with `as_map`, else (images, patches, width), in the compute dtype.

        Raises:
          ValueError: if an input is missing or has the wrong shape or dtype, the tower has no such layer, or a grid
            does not fit into the maps.

        Example:
          >>> import jax
          >>> import jax.numpy as jnp
          >>> import siglip_jax
          >>> model = siglip_jax.Siglip2VisionModel(siglip_jax.Siglip2VisionConfig(num_hidden_layers=2))
          >>> pixels, mask = jnp.zeros((2, 128, 16 * 16 * 3)), jnp.ones((2, 128), jnp.int32)
          >>> inputs = pixels, mask, jnp.array([(8, 16), (12, 10)])
          >>> variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
          >>> jax.eval_shape(lambda v: model.apply(v, *inputs, method="get_patch_features"), variables).shape
          (2, 12, 16, 768)
        """
        config = getattr(self.config, "vision_config", self.config)
        patches = check_patches(pixel_values, pixel_attention_mask, spatial_shapes, config)
        size = None if as_map is False else map_size(as_map, spatial_shapes)
        exit = exit_at(layer, normalize, config.num_hidden_layers)
        x = self.vision_model(patches, exit=exit).last_hidden_state
        return x if size is None else padded_maps(x, patches.spatial_shapes, size)


class Siglip2TextModel(SiglipTextModel):
    """The text tower of a model of variable resolution alone; it computes the same as `SiglipTextModel`.

    Source: `Siglip2TextModel` of `transformers`.

    Attributes:
      config: sizes of the tower, a `Siglip2TextConfig`.
      dtype: compute dtype; layer norms and softmax are computed in float32 whatever it is.
      param_dtype: dtype of freshly initialised parameters.
      attn_implementation: "auto", "xla", "eager", "cudnn" (NVIDIA GPUs) or "pallas" (TPUs). Only "eager" returns
        attention weights; "auto" is the fused kernel of the device where that runs and pays, else "xla".
      remat: what the backward pass recomputes: None (nothing), "full" (everything), "dots" (everything but matrix
        products), "dots_with_no_batch_dims" (everything but matrix products without batch dimensions) or
        "attention_and_mlp_input" (everything but what attention computes and what the MLP takes).
      scan_layers: whether the layers are stacked on a leading axis and run by `lax.scan`, so that compile
        time does not grow with depth.
      init_scheme: initialisers of fresh parameters, "paper" (those of big_vision) or "reference" (those of
        `transformers`).
      mesh: mesh over whose axes `data` and `fsdp` the batch is sharded; None: the mesh of `jax.set_mesh`, if any.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import siglip_jax
      >>> model = siglip_jax.Siglip2TextModel(siglip_jax.Siglip2TextConfig(num_hidden_layers=2))
      >>> ids = jnp.ones((3, 64), jnp.int32)
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), ids)
      >>> jax.eval_shape(lambda v: model.apply(v, ids).embedding, variables).shape
      (3, 768)
    """


class Siglip2VisionModel(VariableResolution):
    """The image tower of variable resolution alone.

    `last_hidden_state` and `hidden_states` hold one token per patch, row by row from the top left: the patch of row r
    and column c of an image with the grid (R, C) is token r * C + c. Padding follows from token R * C on. There is no
    class token.

    Source: `Siglip2VisionModel` of `transformers`; Tschannen et al. 2025, arXiv 2502.14786.

    Attributes:
      config: sizes of the tower, a `Siglip2VisionConfig`.
      dtype: compute dtype; layer norms and softmax are computed in float32 whatever it is.
      param_dtype: dtype of freshly initialised parameters.
      attn_implementation: "auto", "xla", "eager", "cudnn" (NVIDIA GPUs) or "pallas" (TPUs). Only "eager" returns
        attention weights; "auto" is the fused kernel of the device where that runs and pays, else "xla".
      remat: what the backward pass recomputes: None (nothing), "full" (everything), "dots" (everything but matrix
        products), "dots_with_no_batch_dims" (everything but matrix products without batch dimensions) or
        "attention_and_mlp_input" (everything but what attention computes and what the MLP takes).
      scan_layers: whether the layers are stacked on a leading axis and run by `lax.scan`, so that compile
        time does not grow with depth.
      init_scheme: initialisers of fresh parameters, "paper" (those of big_vision) or "reference" (those of
        `transformers`).
      mesh: mesh over whose axes `data` and `fsdp` the batch is sharded; None: the mesh of `jax.set_mesh`, if any.

    Example:
      Two images, of 8 x 16 and 16 x 8 patches:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import siglip_jax
      >>> model = siglip_jax.Siglip2VisionModel(siglip_jax.Siglip2VisionConfig(num_hidden_layers=2))
      >>> pixels, mask = jnp.zeros((2, 128, 16 * 16 * 3)), jnp.ones((2, 128), jnp.int32)
      >>> inputs = pixels, mask, jnp.array([(8, 16), (16, 8)])
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
      >>> jax.eval_shape(lambda v: model.apply(v, *inputs).last_hidden_state, variables).shape
      (2, 128, 768)
    """

    config: Siglip2VisionConfig

    def setup(self) -> None:
        """Builds the tower."""
        self.vision_model = FlexibleTransformer(self.config, self.options)

    def __call__(
        self,
        pixel_values: ArrayLike | None = None,
        pixel_attention_mask: ArrayLike | None = None,
        spatial_shapes: ArrayLike | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        deterministic: bool = True,
    ) -> TowerOutput:
        """Encodes images in patches, as `Siglip2ImageProcessor` makes them.

        Args:
          pixel_values: patches, (images, patches, pixels) floating point. The pixels of a patch are ordered by row,
            column and channel, the patches row by row from the top left, followed by padding.
          pixel_attention_mask: (images, patches), 1 for a patch and 0 for padding; None: padding is attended to, as in
            the reference.
          spatial_shapes: rows and columns of patches of each image, (images, 2) integers.
          output_hidden_states: whether to return the embeddings and the output of each layer.
          output_attentions: whether to return the attention weights; needs `attn_implementation="eager"`.
          deterministic: False switches attention dropout on and needs the random stream "dropout".

        Returns:
          The output of the tower; its `pooler_output` is the embedding, (images, embedding), not normalised, or None
          for a tower without a pooling head.

        Raises:
          ValueError: if an input is missing or has the wrong shape or dtype.
        """
        patches = check_patches(pixel_values, pixel_attention_mask, spatial_shapes, self.config)
        return self.vision_model(patches, output_hidden_states, output_attentions, deterministic)


class Siglip2Model(TwoTowers, VariableResolution):
    """Both towers of variable resolution and the temperature and bias of the sigmoid loss.

    Source: `Siglip2Model` of `transformers`; Tschannen et al. 2025, arXiv 2502.14786.

    Attributes:
      config: sizes of both towers, a `Siglip2Config`.
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
      >>> import jax.numpy as jnp
      >>> import siglip_jax
      >>> model = siglip_jax.Siglip2Model(siglip_jax.Siglip2Config({"num_hidden_layers": 2}, {"num_hidden_layers": 2}))
      >>> ids, pixels, mask = jnp.ones((3, 64), jnp.int32), jnp.zeros((2, 128, 768)), jnp.ones((2, 128), jnp.int32)
      >>> inputs = ids, pixels, mask, jnp.array([(8, 16), (16, 8)])
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
      >>> jax.eval_shape(lambda v: model.apply(v, *inputs).logits_per_image, variables).shape
      (2, 3)
    """

    tower_class = FlexibleTransformer

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        pixel_values: ArrayLike | None = None,
        pixel_attention_mask: ArrayLike | None = None,
        spatial_shapes: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        return_loss: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        deterministic: bool = True,
    ) -> SiglipOutput:
        """Compares every image with every text.

        Args:
          input_ids: token ids, (texts, tokens) integers, padded to the length the model was trained with. An id outside
            the vocabulary is an error, and under `jit` NaN for its text.
          pixel_values: patches, (images, patches, pixels) floating point. The pixels of a patch are ordered by row,
            column and channel, the patches row by row from the top left, followed by padding.
          pixel_attention_mask: (images, patches), 1 for a patch and 0 for padding; None: padding is attended to, as in
            the reference.
          spatial_shapes: rows and columns of patches of each image, (images, 2) integers.
          attention_mask: (texts, tokens), 1 for tokens to attend to and 0 for others, or an additive bias that
            broadcasts to (texts, heads, tokens, tokens); None: all tokens. Published models were trained without one.
          position_ids: position of each token, (texts or 1, tokens) integers; None: 0, 1, 2, ….
          return_loss: whether to return the sigmoid loss too, with images and texts matched by row.
          output_hidden_states: whether to return the embeddings and the output of each layer of both towers.
          output_attentions: whether to return the attention weights; needs `attn_implementation="eager"`.
          deterministic: False switches attention dropout on and needs the random stream "dropout".

        Returns:
          Logits (images, texts) and (texts, images), normalised embeddings, the outputs of both towers, and the loss if
          asked for.

        Raises:
          ValueError: if an input is missing or has the wrong shape or dtype.
        """
        if input_ids is None or pixel_values is None:
            missing = "input_ids" if input_ids is None else "pixel_values"
            raise ValueError(
                f"{missing} must be given, got None; for one tower use get_text_features or get_image_features"
            )
        outputs = output_hidden_states, output_attentions, deterministic
        patches = check_patches(pixel_values, pixel_attention_mask, spatial_shapes, self.config.vision_config)
        text = self.encode_text(input_ids, attention_mask, position_ids, *outputs)
        return self.compare(text, self.vision_model(patches, *outputs), return_loss)

    def get_image_features(
        self,
        pixel_values: ArrayLike | None = None,
        pixel_attention_mask: ArrayLike | None = None,
        spatial_shapes: ArrayLike | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "images embedding"]:
        """Returns the embeddings of images in patches, as `Siglip2ImageProcessor` makes them.

        Args:
          pixel_values: patches, (images, patches, pixels) floating point. The pixels of a patch are ordered by row,
            column and channel, the patches row by row from the top left, followed by padding.
          pixel_attention_mask: (images, patches), 1 for a patch and 0 for padding; None: padding is attended to, as in
            the reference.
          spatial_shapes: rows and columns of patches of each image, (images, 2) integers.
          deterministic: False switches attention dropout on and needs the random stream "dropout".

        Returns:
          (images, embedding) in the compute dtype, not normalised.

        Raises:
          ValueError: if an input is missing or has the wrong shape or dtype.
        """
        patches = check_patches(pixel_values, pixel_attention_mask, spatial_shapes, self.config.vision_config)
        return self.vision_model(patches, deterministic=deterministic).embedding


class Siglip2ForImageClassification(ImageClassifier):
    """A linear classifier on the mean of an image's patches, padding excluded, for images of variable resolution.

    Source: `Siglip2ForImageClassification` of `transformers`.

    Attributes:
      config: sizes and number of labels, a `Siglip2Config`; its text tower is not used.
      dtype: compute dtype; layer norms, softmax and the mean over patches are computed in float32 whatever it is.
      param_dtype: dtype of freshly initialised parameters.
      attn_implementation: "auto", "xla", "eager", "cudnn" (NVIDIA GPUs) or "pallas" (TPUs). Only "eager" returns
        attention weights; "auto" is the fused kernel of the device where that runs and pays, else "xla".
      remat: what the backward pass recomputes: None (nothing), "full" (everything), "dots" (everything but matrix
        products), "dots_with_no_batch_dims" (everything but matrix products without batch dimensions) or
        "attention_and_mlp_input" (everything but what attention computes and what the MLP takes).
      scan_layers: whether the layers are stacked on a leading axis and run by `lax.scan`, so that compile
        time does not grow with depth.
      init_scheme: initialisers of fresh parameters, "paper" (those of big_vision; the last layer starts at zero) or
        "reference" (those of `transformers`).
      mesh: mesh over whose axes `data` and `fsdp` the batch is sharded; None: the mesh of `jax.set_mesh`, if any.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import siglip_jax
      >>> config = siglip_jax.Siglip2Config(vision_config={"num_hidden_layers": 2}, num_labels=5)
      >>> model = siglip_jax.Siglip2ForImageClassification(config)
      >>> inputs = jnp.zeros((2, 128, 768)), jnp.ones((2, 128), jnp.int32), jnp.array([(8, 16), (16, 8)])
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
      >>> jax.eval_shape(lambda v: model.apply(v, *inputs).logits, variables).shape
      (2, 5)
    """

    tower_class = FlexibleTransformer

    def __call__(
        self,
        pixel_values: ArrayLike | None = None,
        pixel_attention_mask: ArrayLike | None = None,
        spatial_shapes: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        deterministic: bool = True,
    ) -> ImageClassifierOutput:
        """Classifies images in patches, as `Siglip2ImageProcessor` makes them.

        Args:
          pixel_values: patches, (images, patches, pixels) floating point. The pixels of a patch are ordered by row,
            column and channel, the patches row by row from the top left, followed by padding.
          pixel_attention_mask: (images, patches), 1 for a patch and 0 for padding; None: padding is attended to, as in
            the reference.
          spatial_shapes: rows and columns of patches of each image, (images, 2) integers.
          labels: (images,) integers, of which -100 takes no part in the loss, or (images, labels) floats for several
            labels per image; None: no loss.
          output_hidden_states: whether to return the embeddings and the output of each layer.
          output_attentions: whether to return the attention weights; needs `attn_implementation="eager"`.
          deterministic: False switches attention dropout on and needs the random stream "dropout".

        Returns:
          Logits (images, labels), and the loss if `labels` are given.

        Raises:
          ValueError: if an input is missing or has the wrong shape or dtype.
        """
        patches = check_patches(pixel_values, pixel_attention_mask, spatial_shapes, self.config.vision_config)
        out = self.vision_model(patches, output_hidden_states, output_attentions, deterministic)
        return self.classify(out, patches.mask, labels)
