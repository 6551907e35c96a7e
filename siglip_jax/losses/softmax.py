"""The softmax loss of CLIP with the interface of the sigmoid loss, for comparisons."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from siglip_jax.losses.sigmoid import check_axis, pairwise_logits
from siglip_jax.losses.tiles import AxisName, BlockSize, make_pairs, with_tile_size


def softmax_loss(
    image_embeds: Float[Array, "images embedding"],
    text_embeds: Float[Array, "texts embedding"],
    logit_scale: Float[Array, "*one"],
    logit_bias: Float[Array, "*one"],
    *,
    block_size: BlockSize = None,
    mesh: Mesh | None = None,
    axis: AxisName = "data",
    image_groups: Int[Array, " images"] | None = None,
) -> Float[Array, ""]:
    """Returns the mean of the cross-entropy of each image over all texts and of each text over all images.

    This is the loss that SigLIP replaces. Every pair takes part in two normalisations over the whole batch, so over a
    mesh the embeddings are gathered on every device. The loss does not depend on the bias, whose gradient is zero.

    Source: Radford et al. 2021, arXiv 2103.00020, figure 3; Zhai et al. 2023, arXiv 2303.15343, section 3.1.

    Args:
      image_embeds: L2-normalised embeddings of the images, (images, embedding).
      text_embeds: L2-normalised embeddings of the texts, (images, embedding), matched to the images by row.
      logit_scale: logarithm of the temperature, as in checkpoints, a scalar or (1,).
      logit_bias: bias added to every logit, a scalar or (1,); it has no effect on the value.
      block_size: rows of logits in memory at a time, which the backward pass recomputes; None: all rows; "auto": a
        number that suits the kind of device.
      mesh: mesh over whose `axis` the embeddings are sharded; None: the loss is computed without `shard_map`.
      axis: axis of the mesh over which the batch is sharded; a tuple for several, as in `("data", "fsdp")`.
      image_groups: group id of each image, (images,) integers; an image and a text of one group and of two rows are
        left out of each other's denominators, because neither is a wrong answer. None: no two rows share an image.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: if shapes do not fit each other, or the batch is not a multiple of the devices along `axis`.

    Example:
      >>> embeds = jnp.eye(4)
      >>> round(float(softmax_loss(embeds, embeds, jnp.log(2.0), jnp.array(0.0))), 2)
      0.34
    """
    pairs = make_pairs(image_embeds, text_embeds, logit_scale, logit_bias, image_groups, image_groups)
    given = pairs.images, pairs.texts, pairs.image_groups, pairs.scale, pairs.bias
    if mesh is None:
        return _both_ways(*given, block_size=block_size, axis=None)
    check_axis(mesh, axis, images=len(pairs.images), texts=len(pairs.texts))
    return _over_mesh(*given, mesh, axis, block_size)


@functools.partial(jax.jit, static_argnums=(5, 6, 7))
def _over_mesh(
    images: Array,
    texts: Array,
    groups: Array,
    scale: Array,
    bias: Array,
    mesh: Mesh,
    axis: AxisName,
    block_size: BlockSize,
) -> Array:
    """Returns the loss of embeddings that are sharded over an axis of a mesh."""
    sharded, replicated = PartitionSpec(axis), PartitionSpec()
    specs = (sharded, sharded, sharded, replicated, replicated)
    share = functools.partial(_both_ways, block_size=block_size, axis=axis)
    return jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=replicated)(images, texts, groups, scale, bias)


def _both_ways(
    images: Array,
    texts: Array,
    groups: Array,
    scale: Array,
    bias: Array,
    *,
    block_size: BlockSize,
    axis: AxisName | None,
) -> Array:
    """Returns the mean of the cross-entropies of images over texts and of texts over images."""
    shared = {"groups": groups, "scale": scale, "bias": bias, "block_size": block_size, "axis": axis}
    loss = (_cross_entropy(images, texts, **shared) + _cross_entropy(texts, images, **shared)) / 2
    return loss if axis is None else lax.pmean(loss, axis)


def _cross_entropy(
    queries: Array,
    keys: Array,
    groups: Array,
    scale: Array,
    bias: Array,
    block_size: BlockSize,
    axis: AxisName | None,
) -> Array:
    """Returns the mean cross-entropy of the queries of this device over all keys; query and key match by row."""
    rows, key_groups = jnp.arange(len(queries)), groups
    if axis is not None:
        rows += lax.axis_index(axis) * len(queries)
        keys, key_groups = (lax.all_gather(x, axis, tiled=True) for x in (keys, groups))

    @jax.checkpoint
    def one(query: Array, row: Array, group: Array) -> Array:
        logits = pairwise_logits(query[None], keys, scale, bias)[0]
        also_right = (key_groups == group) & (jnp.arange(len(keys)) != row)
        return jax.nn.logsumexp(jnp.where(also_right, -jnp.inf, logits)) - logits[row]

    def each(size: int, *of_queries: Array) -> Array:
        return lax.map(lambda x: one(*x), of_queries, batch_size=size)

    return jnp.mean(with_tile_size(block_size, len(queries), each, queries, rows, groups))
