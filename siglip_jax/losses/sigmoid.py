"""The pairwise sigmoid loss (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", algorithm 1)."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from siglip_jax.losses.ring import ring_sigmoid_loss
from siglip_jax.losses.tiles import (
    AxisName,
    BlockSize,
    Pairs,
    common_dtype,
    make_pairs,
    matching,
    signed_loss,
    sum_over_pairs,
)
from siglip_jax.parallel.mesh import check_mesh


def pairwise_logits(
    image_embeds: Float[Array, "images embedding"],
    text_embeds: Float[Array, "texts embedding"],
    logit_scale: Float[Array, "*one"],
    logit_bias: Float[Array, "*one"],
) -> Float[Array, "images texts"]:
    """Returns exp(logit_scale) * image · text + logit_bias for every pair, in float32."""
    # The temperature multiplies rounding errors by a hundred: no TF32 or bfloat16 passes, whatever the default is.
    dtype = common_dtype(image_embeds.dtype, text_embeds.dtype, jnp.float32)
    similarity = jnp.matmul(image_embeds, text_embeds.T, precision="highest", preferred_element_type=dtype)
    scale, bias = (jnp.asarray(x, dtype).reshape(1, 1) for x in (logit_scale, logit_bias))
    return similarity * jnp.exp(scale) + bias


def sigmoid_loss_of_logits(
    logits: Float[Array, "images texts"], match: Bool[Array, "images texts"] | None = None
) -> Float[Array, ""]:
    """Returns the mean over images of the sum over texts of −log σ(±logit).

    Args:
      logits: logit of every pair.
      match: whether each pair matches; None: the pairs on the diagonal match.

    Raises:
      ValueError: if pairs match by row and the numbers of images and texts differ.
    """
    if match is None:
        if logits.shape[0] != logits.shape[1]:
            raise ValueError(
                f"texts must be as many as images to match by row, got {logits.shape[0]} images and"
                f" {logits.shape[1]} texts"
            )
        match = jnp.eye(len(logits), dtype=bool)
    return jnp.sum(signed_loss(jnp.where(match, -logits, logits))) / len(logits)


def sigmoid_loss(
    image_embeds: Float[Array, "images embedding"],
    text_embeds: Float[Array, "texts embedding"],
    logit_scale: Float[Array, "*one"],
    logit_bias: Float[Array, "*one"],
    *,
    block_size: BlockSize = None,
    mesh: Mesh | None = None,
    axis: AxisName = "data",
    image_groups: Int[Array, "images ..."] | None = None,
    text_groups: Int[Array, "texts ..."] | None = None,
) -> Float[Array, ""]:
    """Returns the mean over images of the sum over texts of −log σ(±logit): + for matching texts, − for all others.

    Temperature and bias are learned with the towers. Every pair of the batch is a binary problem of its own, so the
    value grows with the batch, unlike that of a softmax loss. Sums and logits are float32 whatever the dtype of the
    embeddings.

    With a block size or a mesh, gradients are computed together with the value, in three matrix products, and only one
    tile of logits exists at a time. Second derivatives are correct, but keep all tiles. `jax.jvp` is not supported.

    Source: Zhai et al. 2023, arXiv 2303.15343, sections 3.2 and 3.3; `SiglipModel` of `transformers` with
    `return_loss=True`.

    Args:
      image_embeds: L2-normalised embeddings of the images, (images, embedding).
      text_embeds: L2-normalised embeddings of the texts, (texts, embedding), matched to the images by row or by groups.
      logit_scale: logarithm of the temperature, as in checkpoints, a scalar or (1,).
      logit_bias: bias added to every logit, a scalar or (1,).
      block_size: rows and columns of the largest tile of logits in memory; None: all logits at once (with a mesh, one
        tile for each pair of devices); "auto": a size that suits the kind of device.
      mesh: mesh over whose `axis` the embeddings are sharded; texts are passed around its devices as a ring. None: the
        loss is computed without `shard_map`.
      axis: axis of the mesh over which the batch is sharded; a tuple for several, as in `("data", "fsdp")`.
      image_groups: group id of each image, (images,) integers; an image and a text of the same group are a positive
        pair, so that an image may have several captions. (images, kinds): groups of several kinds, in any of which a
        positive pair may agree. None: images and texts match by row.
      text_groups: group id of each text, (texts,) integers or (texts, kinds); given together with `image_groups`.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: if shapes do not fit each other, only one of both groups is given, or the images or texts are not a
        multiple of the devices along `axis`.

    Example:
      Two images, the first with two captions:

      >>> images, texts = jnp.eye(2), jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> groups = {"image_groups": jnp.array([0, 1]), "text_groups": jnp.array([0, 0, 1])}
      >>> loss = sigmoid_loss(images, texts, jnp.log(10.0), jnp.array(-10.0), **groups)
      >>> round(float(loss), 2)
      1.04
    """
    pairs = make_pairs(image_embeds, text_embeds, logit_scale, logit_bias, image_groups, text_groups)
    if mesh is not None:
        check_axis(mesh, axis, images=len(pairs.images), texts=len(pairs.texts))
        return _over_mesh(pairs, mesh, axis, block_size)
    if block_size is not None:
        return sum_over_pairs(pairs, block_size) / len(pairs.images)
    logits = pairwise_logits(pairs.images, pairs.texts, pairs.scale, pairs.bias)
    return sigmoid_loss_of_logits(logits, matching(pairs.image_groups, pairs.text_groups))


@functools.partial(jax.jit, static_argnames=("mesh", "axis", "block_size"))
def _over_mesh(pairs: Pairs, mesh: Mesh, axis: AxisName, block_size: BlockSize) -> Array:
    """Returns the loss of pairs whose images and texts are sharded over an axis of a mesh."""

    def mean_of_shares(
        images: Array, texts: Array, image_groups: Array, text_groups: Array, scale: Array, bias: Array
    ) -> Array:
        groups = {"image_groups": image_groups, "text_groups": text_groups}
        share = ring_sigmoid_loss(images, texts, scale, bias, axis_name=axis, block_size=block_size, **groups)
        return lax.pmean(share, axis)

    sharded, replicated = PartitionSpec(axis), PartitionSpec()
    specs = (sharded, sharded, sharded, sharded, replicated, replicated)
    return jax.shard_map(mean_of_shares, mesh=mesh, in_specs=specs, out_specs=replicated)(*pairs)


def check_axis(mesh: Mesh, axis: AxisName, **sizes: int) -> None:
    """Refuses a batch that cannot be sharded evenly over an axis of a mesh.

    Args:
      mesh: mesh over which the batch is sharded.
      axis: axis of the mesh, or several.
      **sizes: number of what is sharded by its name, as `images=64`.

    Raises:
      ValueError: if the mesh lacks the axis or has Explicit axes, or a number is not a multiple of the devices along
        it.
    """
    check_mesh(mesh)
    names = (axis,) if isinstance(axis, str) else tuple(axis)
    if missing := [name for name in names if name not in mesh.shape]:
        raise ValueError(f"axis must be one of the mesh axes {', '.join(mesh.shape)}, got {', '.join(missing)}")
    devices = math.prod(mesh.shape[name] for name in names)
    if any(size % devices for size in sizes.values()):
        found = " and ".join(f"{size} {name}" for name, size in sizes.items())
        raise ValueError(
            f"{' and '.join(sizes)} must be multiples of the {devices} devices along {', '.join(names)}, got {found};"
            " drop or repeat some"
        )
