"""The image tower of fixed resolution, and the parts it shares with the one of variable resolution in `naflex`.

Mirrors `SiglipVisionTransformer`, with images as (batch, height, width, channel). The embedding is the output of the
pooling head, in which a learned probe attends to all patches, followed by an MLP with a residual; there is no class
token.
"""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from siglip_jax.configs.configuration import SiglipVisionConfig
from siglip_jax.models.attention import mask_to_bias
from siglip_jax.models.encoder import Embedding, Encoder, LayerNorm, Options
from siglip_jax.models.features import Exit
from siglip_jax.models.outputs import TowerOutput
from siglip_jax.models.pooling import PoolingHead
from siglip_jax.models.positions import grid_bucket_ids, resize_position_table
from siglip_jax.parallel.mesh import check_sharding


def check_pixels(
    pixel_values: ArrayLike, config: SiglipVisionConfig, interpolate: bool
) -> Float[Array, "batch height width channel"]:
    """Returns a batch of images in the layout and size of the model as a jax array.

    Raises:
      ValueError: if the images are not (batch, height, width, channel) floating point of the size of the model.
    """
    pixel_values = jnp.asarray(pixel_values)
    shape, channels, p = pixel_values.shape, config.num_channels, config.patch_size
    expected = f"(batch, {config.image_size}, {config.image_size}, {channels})"
    if len(shape) != 4:
        raise ValueError(f"pixel_values must be {expected}, got shape {shape}; add a batch axis to a single image")
    if shape[-1] != channels:
        hint = "transpose with (0, 2, 3, 1)" if shape[1] == channels else "use the model's processor"
        found = "channels first" if shape[1] == channels else "another number of channels"
        raise ValueError(f"pixel_values must be channels last, {expected}, got shape {shape}, {found}; {hint}")
    if not jnp.issubdtype(pixel_values.dtype, jnp.floating):
        raise ValueError(f"pixel_values must be floating point, got {pixel_values.dtype}; use the model's processor")
    rows, columns = shape[1] // p, shape[2] // p
    if not rows or not columns:
        raise ValueError(f"pixel_values must be at least one patch of {p} x {p} pixels, got shape {shape}")
    if not (interpolate or config.bucket_positions) and rows * columns != config.num_patches:
        raise ValueError(
            f"pixel_values must be {expected}, that is {config.num_patches} patches, got shape {shape}, that is"
            f" {rows * columns}; resize the images, or pass interpolate_pos_encoding=True"
        )
    return pixel_values


def check_patch_mask(
    mask: ArrayLike | None, pixel_values: Float[Array, "batch height width channel"], config: SiglipVisionConfig
) -> Shaped[Array, "batch rows columns"] | None:
    """Returns a mask of patches as a jax array; None: no mask.

    Raises:
      ValueError: if it has another shape than the grid of the images' patches.
    """
    if mask is None:
        return None
    batch, height, width, _ = pixel_values.shape
    expected = (batch, height // config.patch_size, width // config.patch_size)
    if (found := jnp.shape(mask)) != expected:
        raise ValueError(
            f"patch_attention_mask must be (batch, rows, columns) of the patches, {expected}, got {found}; pass 1 for"
            " a patch of the image and 0 for padding"
        )
    return jnp.asarray(mask)


class VisionEmbeddings(nn.Module):
    """Linear projection of patches, row by row from the top left, plus their position embedding."""

    config: SiglipVisionConfig
    options: Options

    @nn.compact
    def __call__(
        self,
        pixel_values: Float[Array, "batch height width channel"],
        interpolate_pos_encoding: bool = False,
        mask: Shaped[Array, "batch rows columns"] | None = None,
    ) -> Float[Array, "batch patches hidden"]:
        check_sharding(pixel_values)
        c, inits, types = self.config, self.options.inits, self.options.types
        batch, height, width, _ = pixel_values.shape
        grid = height // c.patch_size, width // c.patch_size
        patches = nn.Conv(
            c.hidden_size,
            (c.patch_size, c.patch_size),
            strides=(c.patch_size, c.patch_size),
            padding="VALID",  # as in the reference, pixels beyond a whole number of patches are dropped
            kernel_init=inits.patch,
            name="patch_embedding",
            **types,
        )(pixel_values.astype(self.options.dtype)).reshape(batch, -1, c.hidden_size)
        table = Embedding(c.num_patches, c.hidden_size, inits.embedding, name="position_embedding", **types)
        if c.bucket_positions:
            ids = grid_bucket_ids(math.isqrt(c.num_patches), grid, None if mask is None else _counts(mask))
            return patches + jnp.broadcast_to(table(ids), patches.shape)
        positions = table(jnp.arange(c.num_patches))
        # The reference resizes a non-square image even where the number of patches happens to match.
        if interpolate_pos_encoding and not (grid[0] * grid[1] == c.num_patches and height == width):
            positions = resize_position_table(positions, grid)
        return patches + jnp.broadcast_to(positions[None], patches.shape)


def _counts(mask: Shaped[Array, "batch rows columns"]) -> Int[Array, "batch 2"]:
    """Returns the rows and columns of patches of each image that are not padding."""
    present = mask.astype(bool).astype(jnp.int32)
    return jnp.stack([present[:, :, 0].sum(1), present[:, 0, :].sum(1)], axis=1)


class ImageTransformer(nn.Module):
    """The part of both image towers after the embeddings; subclasses add `__call__`, whose scope holds the layers."""

    config: Any
    options: Options

    def transform(
        self,
        x: Float[Array, "batch patches width"],
        mask: ArrayLike | None,
        output_hidden_states: bool,
        output_attentions: bool,
        deterministic: bool,
        exit: Exit | None = None,
    ) -> TowerOutput:
        """Applies encoder, final layer norm and, with `vision_use_head` or `average_pooling`, pooling.

        Args:
          x: embeddings of the patches.
          mask: (batch, patches), 1 for a patch and 0 for padding; None: all are patches.
          output_hidden_states: whether to return the embeddings and the output of each layer.
          output_attentions: whether to return the attention weights.
          deterministic: False switches attention dropout on.
          exit: where to read the tokens, of which the output then consists; None: at the end.
        """
        bias = mask_to_bias(mask)
        exit = None if self.is_initializing() else exit  # parameters are made for the whole tower
        x, hidden_states, attentions = Encoder(self.config, self.options, name="encoder")(
            x, bias, output_hidden_states, output_attentions, deterministic, exit.layers if exit else None
        )
        if exit and not exit.normalize:
            return TowerOutput(x)
        x = LayerNorm(self.config.layer_norm_eps, name="post_layernorm", **self.options.types)(x)
        pooled = None
        if self.config.vision_use_head and not exit:
            pooled = PoolingHead(self.config, self.options, name="head")(x, bias)
        elif self.config.average_pooling and not exit:
            used = None if mask is None else jnp.asarray(mask, bool)[..., None]
            pooled = jnp.mean(x.astype(jnp.float32), axis=1, where=used).astype(x.dtype)
        return TowerOutput(x, pooled, hidden_states, attentions)


class VisionTransformer(ImageTransformer):
    """The image tower of fixed resolution."""

    config: SiglipVisionConfig

    @nn.compact
    def __call__(
        self,
        pixel_values: Float[Array, "batch height width channel"],
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        deterministic: bool = True,
        exit: Exit | None = None,
        patch_attention_mask: Shaped[Array, "batch rows columns"] | None = None,
    ) -> TowerOutput:
        embeddings = VisionEmbeddings(self.config, self.options, name="embeddings")
        x = embeddings(pixel_values, interpolate_pos_encoding, patch_attention_mask)
        mask = None if patch_attention_mask is None else patch_attention_mask.reshape(x.shape[:2])
        return self.transform(x, mask, output_hidden_states, output_attentions, deterministic, exit)
