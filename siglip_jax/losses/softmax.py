"""The softmax loss of CLIP, in the interface of the sigmoid loss, to compare the two."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from siglip_jax.losses.sigmoid import check_axis, pairwise_logits
from siglip_jax.losses.tiles import AxisName, BlockSize, make_pairs, tile_size


def softmax_loss(
    image_embeds: Float[Array, "images embedding"],
    text_embeds: Float[Array, "texts embedding"],
    logit_scale: Float[Array, "*one"],
    logit_bias: Float[Array, "*one"],
    *,
    block_size: BlockSize = None,
    mesh: Mesh | None = None,
    axis: AxisName = "data",
) -> Float[Array, ""]:
    """Mean of the cross-entropy of each image over all texts and of each text over all images.

    The loss that SigLIP's replaces: every pair takes part in two normalisations over the whole batch, so over a mesh
    the embeddings are gathered on every device. It does not depend on the bias, whose gradient is zero.

    Args:
      image_embeds, text_embeds: L2-normalised, matched by row.
      logit_scale: log of the temperature, a scalar or (1,).
      logit_bias: a scalar or (1,); of no effect.
      block_size: rows of logits that are held at a time, and computed again in the backward pass; None: all;
        "auto": chosen for the kind of device.
      mesh: the devices over whose `axis` the embeddings are cut.

    Raises:
      ValueError: if shapes do not fit each other, or the batch cannot be cut evenly over the devices.

    References:
      Radford et al. 2021, arXiv 2103.00020, figure 3; Zhai et al. 2023, arXiv 2303.15343, section 3.1.
    """
    pairs = make_pairs(image_embeds, text_embeds, logit_scale, logit_bias, None, None)
    given = pairs.images, pairs.texts, pairs.scale, pairs.bias
    if mesh is None:
        return _both_ways(*given, block_size=block_size, axis=None)
    check_axis(mesh, axis, len(pairs.images), len(pairs.texts))
    return _over_mesh(*given, mesh, axis, block_size)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _over_mesh(
    images: Array, texts: Array, scale: Array, bias: Array, mesh: Mesh, axis: AxisName, block_size: BlockSize
) -> Array:
    cut, whole = PartitionSpec(axis), PartitionSpec()
    share = functools.partial(_both_ways, block_size=block_size, axis=axis)
    return jax.shard_map(share, mesh=mesh, in_specs=(cut, cut, whole, whole), out_specs=whole)(
        images, texts, scale, bias
    )


def _both_ways(
    images: Array, texts: Array, scale: Array, bias: Array, *, block_size: BlockSize, axis: AxisName | None
) -> Array:
    cross_entropy = functools.partial(_cross_entropy, scale=scale, bias=bias, block_size=block_size, axis=axis)
    loss = (cross_entropy(images, texts) + cross_entropy(texts, images)) / 2
    return loss if axis is None else lax.pmean(loss, axis)


def _cross_entropy(
    queries: Array, keys: Array, scale: Array, bias: Array, block_size: BlockSize, axis: AxisName | None
) -> Array:
    """Returns the mean over the queries of this device; the key of each is in its row."""
    rows = jnp.arange(len(queries))
    if axis is not None:
        rows += lax.axis_index(axis) * len(queries)
        keys = lax.all_gather(keys, axis, tiled=True)

    @jax.checkpoint
    def one(query: Array, row: Array) -> Array:
        logits = pairwise_logits(query[None], keys, scale, bias)[0]
        return jax.nn.logsumexp(logits) - logits[row]

    return jnp.mean(lax.map(lambda x: one(*x), (queries, rows), batch_size=tile_size(block_size, len(queries))))
