"""Images of variable resolution as patches: their checks, and their embeddings with a position table for each grid."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Shaped

from siglip_jax.configs.configuration import Siglip2VisionConfig
from siglip_jax.models.encoder import Embedding, Options
from siglip_jax.models.positions import flexible_positions
from siglip_jax.models.products import Dense
from siglip_jax.parallel.mesh import check_sharding


class Patches(NamedTuple):
    """Images as patches, as `check_patches` returns them."""

    pixel_values: Float[Array, "batch patches pixels"]
    mask: Shaped[Array, "batch patches"] | None
    spatial_shapes: Int[Array, "batch 2"]


def check_patches(
    pixel_values: Any, pixel_attention_mask: Any, spatial_shapes: Any, config: Siglip2VisionConfig
) -> Patches:
    """Returns images in patches as jax arrays. Grids are compared with the number of patches unless they are traced.

    Raises:
      ValueError: if an input is missing, has the wrong shape or dtype, or a grid has more patches than the images.
    """
    given = {"pixel_values": pixel_values, "spatial_shapes": spatial_shapes}
    if missing := [name for name, value in given.items() if value is None]:
        raise ValueError(
            f"{' and '.join(missing)} must be given, got None; use Siglip2ImageProcessor, which makes both"
        )
    p, channels = config.patch_size, config.num_channels
    pixel_values, shape = jnp.asarray(pixel_values), np.shape(pixel_values)
    expected = f"(batch, patches, {p * p * channels}), patches of {p} x {p} pixels by {channels} channels"
    if len(shape) != 3 or shape[-1] != p * p * channels or not shape[1]:
        raise ValueError(f"pixel_values must be {expected}, got shape {shape}; use Siglip2ImageProcessor")
    if not jnp.issubdtype(pixel_values.dtype, jnp.floating):
        raise ValueError(f"pixel_values must be floating point, got {pixel_values.dtype}; use Siglip2ImageProcessor")
    if pixel_attention_mask is not None and np.shape(pixel_attention_mask) != shape[:2]:
        found = np.shape(pixel_attention_mask)
        raise ValueError(f"pixel_attention_mask must be (batch, patches) as pixel_values, {shape[:2]}, got {found}")
    grids = jnp.asarray(spatial_shapes)
    if grids.shape != (shape[0], 2) or not jnp.issubdtype(grids.dtype, jnp.integer):
        raise ValueError(
            f"spatial_shapes must be (batch, 2) integers, rows and columns of {shape[0]} images, got shape"
            f" {grids.shape} of {grids.dtype}"
        )
    _check_grids(spatial_shapes, shape[1])
    return Patches(pixel_values, None if pixel_attention_mask is None else jnp.asarray(pixel_attention_mask), grids)


def _check_grids(spatial_shapes: Any, patches: int) -> None:
    """Refuses grids that are empty or have more than `patches` patches, if their values are known."""
    if isinstance(spatial_shapes, jax.core.Tracer) or not getattr(spatial_shapes, "is_fully_addressable", True):
        return
    for i, (rows, columns) in enumerate(np.asarray(spatial_shapes).tolist()):
        if rows < 1 or columns < 1 or rows * columns > patches:
            raise ValueError(
                f"spatial_shapes must be grids of 1 to {patches} patches, as many as pixel_values has, got"
                f" {rows} x {columns} for image {i}; use Siglip2ImageProcessor"
            )


class FlexibleEmbeddings(nn.Module):
    """Linear projection of patches, plus the position table resized to the grid of each image."""

    config: Siglip2VisionConfig
    options: Options

    @nn.compact
    def __call__(
        self, pixel_values: Float[Array, "batch patches pixels"], spatial_shapes: Int[Array, "batch 2"]
    ) -> Float[Array, "batch patches hidden"]:
        check_sharding(pixel_values)
        c, inits, types = self.config, self.options.inits, self.options.types
        dense = Dense(c.hidden_size, kernel_init=inits.patch, name="patch_embedding", **types)
        table = Embedding(c.num_patches, c.hidden_size, inits.embedding, name="position_embedding", **types)
        positions = flexible_positions(table.embedding, spatial_shapes, pixel_values.shape[1])
        return dense(pixel_values.astype(self.options.dtype)) + positions.astype(self.options.dtype)
