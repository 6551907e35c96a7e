"""SigLIP 2 of variable resolution (NaFlex): each image keeps its proportions and has its own grid of patches.

Mirrors `Siglip2Model`, `Siglip2TextModel`, `Siglip2VisionModel` and `Siglip2ForImageClassification`. Images arrive cut
into patches and padded to one number of them (`Siglip2ImageProcessor` does both); the position table is resized to each
image's grid, and padding is masked out of every attention, the pooling and the mean. Differences from the reference are
those of the modules of fixed resolution. Grids are data, not shapes: one compiled program serves them all, and no side
is limited below the number of patches.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from siglip_jax.configs.configuration import Siglip2VisionConfig
from siglip_jax.models.classifier import ImageClassifier
from siglip_jax.models.encoder import Embedding, Options
from siglip_jax.models.outputs import ImageClassifierOutput, SiglipOutput, TowerOutput
from siglip_jax.models.positions import flexible_positions
from siglip_jax.models.pretrained import PretrainedModule
from siglip_jax.models.products import Dense
from siglip_jax.models.siglip import SiglipTextModel, TwoTowers
from siglip_jax.models.vision import ImageTransformer


class Patches(NamedTuple):
    """Images as patches: what `check_patches` returns."""

    pixel_values: Float[Array, "batch patches pixels"]
    mask: Shaped[Array, "batch patches"] | None
    spatial_shapes: Int[Array, "batch 2"]


def check_patches(
    pixel_values: Any, pixel_attention_mask: Any, spatial_shapes: Any, config: Siglip2VisionConfig
) -> Patches:
    """Returns images in patches as jax arrays. Grids are compared with the number of patches unless they are traced.

    Raises:
      ValueError: with what is expected, what was found and what to do.
    """
    given = {"pixel_values": pixel_values, "spatial_shapes": spatial_shapes}
    if missing := [name for name, value in given.items() if value is None]:
        raise ValueError(f"{' and '.join(missing)} must be given; Siglip2ImageProcessor makes all that the model takes")
    p, channels = config.patch_size, config.num_channels
    pixel_values, shape = jnp.asarray(pixel_values), np.shape(pixel_values)
    expected = f"(batch, patches, {p * p * channels}), patches of {p} x {p} pixels by {channels} channels"
    if len(shape) != 3 or shape[-1] != p * p * channels or not shape[1]:
        raise ValueError(f"pixel_values must be {expected}; got shape {shape}: use Siglip2ImageProcessor")
    if not jnp.issubdtype(pixel_values.dtype, jnp.floating):
        raise ValueError(f"pixel_values must be floating point, got {pixel_values.dtype}; use Siglip2ImageProcessor")
    if pixel_attention_mask is not None and np.shape(pixel_attention_mask) != shape[:2]:
        found = np.shape(pixel_attention_mask)
        raise ValueError(f"pixel_attention_mask must be (batch, patches) as pixel_values, {shape[:2]}; got {found}")
    grids = jnp.asarray(spatial_shapes)
    if grids.shape != (shape[0], 2) or not jnp.issubdtype(grids.dtype, jnp.integer):
        raise ValueError(
            f"spatial_shapes must be (batch, 2) integers, rows and columns of {shape[0]} images; got shape"
            f" {grids.shape} of {grids.dtype}"
        )
    _check_grids(spatial_shapes, shape[1])
    return Patches(pixel_values, None if pixel_attention_mask is None else jnp.asarray(pixel_attention_mask), grids)


def _check_grids(spatial_shapes: Any, patches: int) -> None:
    if isinstance(spatial_shapes, jax.core.Tracer) or not getattr(spatial_shapes, "is_fully_addressable", True):
        return
    for i, (rows, columns) in enumerate(np.asarray(spatial_shapes).tolist()):
        if rows < 1 or columns < 1 or rows * columns > patches:
            raise ValueError(
                f"spatial_shapes: expected grids of 1 to {patches} patches, as many as pixel_values has, found"
                f" {rows} x {columns} for image {i}"
            )


class FlexibleEmbeddings(nn.Module):
    """Patches through a linear map, plus the position table resized to the grid of each image."""

    config: Siglip2VisionConfig
    options: Options

    @nn.compact
    def __call__(
        self, pixel_values: Float[Array, "batch patches pixels"], spatial_shapes: Int[Array, "batch 2"]
    ) -> Float[Array, "batch patches hidden"]:
        c, inits, types = self.config, self.options.inits, self.options.types
        dense = Dense(c.hidden_size, kernel_init=inits.patch, name="patch_embedding", **types)
        table = Embedding(c.num_patches, c.hidden_size, inits.embedding, name="position_embedding", **types)
        positions = flexible_positions(table.embedding, spatial_shapes, pixel_values.shape[1])
        return dense(pixel_values.astype(self.options.dtype)) + positions.astype(self.options.dtype)


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
    ) -> TowerOutput:
        embeddings = FlexibleEmbeddings(self.config, self.options, name="embeddings")
        x = embeddings(patches.pixel_values, patches.spatial_shapes)
        return self.transform(x, patches.mask, output_hidden_states, output_attentions, deterministic)


class Siglip2TextModel(SiglipTextModel):
    """The text tower alone, the same as `SiglipTextModel`; its configuration is a `Siglip2TextConfig`."""


class Siglip2VisionModel(PretrainedModule):
    """The image tower of variable resolution alone; see `PretrainedModule` for the fields."""

    config: Siglip2VisionConfig

    def setup(self) -> None:
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
        """Encodes images in patches; the arguments are those of `Siglip2Model`.

        `pooler_output` is the embedding, not normalised, or None without a pooling head.
        """
        patches = check_patches(pixel_values, pixel_attention_mask, spatial_shapes, self.config)
        return self.vision_model(patches, output_hidden_states, output_attentions, deterministic)


class Siglip2Model(TwoTowers):
    """Both towers and the temperature and bias of the sigmoid loss; its configuration is a `Siglip2Config`.

    The fields are those of `PretrainedModule`.
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
          input_ids: (texts, tokens) integers.
          pixel_values: (images, patches, pixels) floating point; the pixels of a patch by row, column, channel, the
            patches by row and column, then padding.
          pixel_attention_mask: (images, patches), 1 for a patch, 0 for padding; as in the reference, without it the
            padding is attended to.
          spatial_shapes: (images, 2) integers, the rows and columns of patches of each image.
          attention_mask: (texts, tokens), 1 to attend; published models were trained without one.
          position_ids: (texts or 1, tokens) integers, 0, 1, 2, … if None.
          return_loss: also the sigmoid loss, with images and texts matched by row.
          deterministic: False switches attention dropout on and needs the random stream "dropout".

        Raises:
          ValueError: if an input is missing or of the wrong shape.
        """
        if input_ids is None or pixel_values is None:
            missing = "input_ids" if input_ids is None else "pixel_values"
            raise ValueError(f"{missing} is missing; for one tower use get_text_features or get_image_features")
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
        """Returns the pooled embeddings of images in patches, not normalised; the arguments are those of a call."""
        patches = check_patches(pixel_values, pixel_attention_mask, spatial_shapes, self.config.vision_config)
        return self.vision_model(patches, deterministic=deterministic).embedding


class Siglip2ForImageClassification(ImageClassifier):
    """A linear classifier on the mean of an image's patches; its configuration is a `Siglip2Config`.

    The fields are those of `PretrainedModule`.
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
        """Classifies images in patches, as `Siglip2Model` takes them; with `labels` also their loss."""
        patches = check_patches(pixel_values, pixel_attention_mask, spatial_shapes, self.config.vision_config)
        out = self.vision_model(patches, output_hidden_states, output_attentions, deterministic)
        return self.classify(out, patches.mask, labels)
