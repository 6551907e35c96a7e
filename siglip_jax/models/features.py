"""Features of patches: which state of a tower they are, their arrangement as maps, and averages of maps.

A tower of L layers has L + 1 states: the embeddings, then the output of each layer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int


class Exit(NamedTuple):
    """Where the tokens of a tower are read.

    Attributes:
      layers: number of layers to apply.
      normalize: whether to apply the final layer norm.
    """

    layers: int
    normalize: bool


def exit_at(layer: int, normalize: bool, depth: int) -> Exit:
    """Returns where a state is read.

    Args:
      layer: index of the state; a negative one counts from the end.
      normalize: whether to apply the final layer norm, if the state is the last.
      depth: number of layers of the tower.

    Raises:
      ValueError: if the tower has no such state.
    """
    if not -depth - 1 <= layer <= depth:
        raise ValueError(
            f"layer must be {-depth - 1} to {depth}, 0 for the embeddings and {depth} or -1 for the last layer, got"
            f" {layer}; choose one of them"
        )
    layer %= depth + 1
    return Exit(layer, normalize and layer == depth)


def map_mask(spatial_shapes: Any, size: tuple[int, int]) -> Bool[Array, "images rows columns"]:
    """Returns which cells of padded maps are patches: those within the grid of each image.

    Args:
      spatial_shapes: rows and columns of patches of each image, (images, 2) integers.
      size: (rows, columns) of the maps.

    Returns:
      (images, rows, columns), False for padding.

    Example:
      >>> map_mask([(1, 2), (2, 1)], (2, 2)).tolist()
      [[[True, True], [False, False]], [[True, False], [True, False]]]
    """
    grids = jnp.asarray(spatial_shapes)
    rows, columns = jnp.arange(size[0])[None, :, None], jnp.arange(size[1])[None, None, :]
    return (rows < grids[:, :1, None]) & (columns < grids[:, 1:, None])


def padded_maps(
    tokens: Float[Array, "images patches width"], spatial_shapes: Int[Array, "images 2"], size: tuple[int, int]
) -> Float[Array, "images rows columns width"]:
    """Returns the tokens of each image at the row and column of their patch, and zeros outside its grid."""
    rows, columns = jnp.arange(size[0])[None, :, None], jnp.arange(size[1])[None, None, :]
    mask = map_mask(spatial_shapes, size)
    index = jnp.where(mask, rows * spatial_shapes[:, 1:, None] + columns, 0).reshape(len(tokens), -1, 1)
    maps = jnp.take_along_axis(tokens, index, axis=1).reshape(len(tokens), *size, -1)
    return jnp.where(mask[..., None], maps, 0)


def map_size(as_map: bool | tuple[int, int], spatial_shapes: Any) -> tuple[int, int]:
    """Returns the (rows, columns) of the maps of some images of variable resolution.

    Args:
      as_map: True for the smallest size that holds every grid, or the size.
      spatial_shapes: rows and columns of patches of each image, (images, 2) integers.

    Raises:
      ValueError: if the grids are needed and traced, or do not fit.
    """
    known = not isinstance(spatial_shapes, jax.core.Tracer) and getattr(spatial_shapes, "is_fully_addressable", True)
    largest = tuple(np.asarray(spatial_shapes).max(axis=0).tolist()) if known else None
    if isinstance(as_map, bool):
        if largest is None:
            raise ValueError(
                "as_map must be a pair (rows, columns) or False where the values of spatial_shapes are not known, got"
                " True; give the size that holds every grid"
            )
        return largest
    rows, columns = as_map
    if rows < 1 or columns < 1 or largest is not None and (rows < largest[0] or columns < largest[1]):
        held = "1 x 1" if largest is None else f"{largest[0]} x {largest[1]}"
        raise ValueError(f"as_map must be at least {held}, which holds every grid, got {rows} x {columns}; enlarge it")
    return rows, columns


def average_pool(
    features: ArrayLike,
    size: tuple[int, int] = (1, 1),
    mask: ArrayLike | None = None,
) -> Float[Array, "images {size[0]} {size[1]} width"]:
    """Averages maps of features over equal blocks, as Gemma 3 does before it projects the features of its tower.

    Source: `Gemma3MultiModalProjector` of `transformers`, which pools 64 x 64 patches to 16 x 16, of the last layer
    after the final norm; `VisionExit` of `gemma`.

    Args:
      features: (images, rows, columns, width), as `get_patch_features` returns them.
      size: (rows, columns) of the result, which divide those of `features`; (1, 1) is the mean over the image.
      mask: (images, rows, columns), False for cells that take no part, as `map_mask` returns it; None: all take part.
        A block without any part is zero.

    Returns:
      (images, *size, width) in the dtype of `features`; the averages are computed in float32.

    Raises:
      ValueError: if the blocks are not whole.

    Example:
      >>> import jax.numpy as jnp
      >>> features = jnp.arange(16.0).reshape(1, 4, 4, 1)
      >>> average_pool(features, (2, 2))[0, :, :, 0].tolist()
      [[2.5, 4.5], [10.5, 12.5]]
    """
    features = jnp.asarray(features)
    images, rows, columns, width = features.shape
    if size[0] < 1 or size[1] < 1 or rows % size[0] or columns % size[1]:
        raise ValueError(
            f"size must divide the {rows} x {columns} cells of features, got {size[0]} x {size[1]}; choose divisors"
        )
    blocks = (images, size[0], rows // size[0], size[1], columns // size[1])
    x = features.astype(jnp.float32).reshape(*blocks, width)
    if mask is None:
        return jnp.mean(x, axis=(2, 4)).astype(features.dtype)
    kept = jnp.asarray(mask, bool).reshape(*blocks, 1)
    count = jnp.sum(kept, axis=(2, 4), dtype=jnp.float32)
    total = jnp.sum(jnp.where(kept, x, 0), axis=(2, 4))
    return (total / jnp.maximum(count, 1)).astype(features.dtype)
