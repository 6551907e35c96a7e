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
    # The temperature multiplies every rounding by a hundred: no TF32 or bfloat16 passes here, whatever the default is.
    dtype = common_dtype(image_embeds.dtype, text_embeds.dtype, jnp.float32)
    similarity = jnp.matmul(image_embeds, text_embeds.T, precision="highest", preferred_element_type=dtype)
    scale, bias = (jnp.asarray(x, dtype).reshape(1, 1) for x in (logit_scale, logit_bias))
    return similarity * jnp.exp(scale) + bias


def sigmoid_loss_of_logits(
    logits: Float[Array, "images texts"], match: Bool[Array, "images texts"] | None = None
) -> Float[Array, ""]:
    """Mean over images of the sum over texts of −log σ(±logit).

    Args:
      match: which pairs match; None: those on the diagonal.

    Raises:
      ValueError: if they are to match by row, and there are not as many texts as images.
    """
    if match is None:
        if logits.shape[0] != logits.shape[1]:
            raise ValueError(
                f"the loss needs as many texts as images, matched by row; got {logits.shape[0]} images and"
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
    image_groups: Int[Array, " images"] | None = None,
    text_groups: Int[Array, " texts"] | None = None,
) -> Float[Array, ""]:
    """Mean over images of the sum over texts of −log σ(±logit): + for matching texts, − for all others.

    For embeddings that are already L2-normalised; temperature and bias are learned with the towers. Every pair of the
    batch is a binary problem of its own, so the value grows with the batch, unlike that of a softmax loss. Sums and
    logits are float32 whatever the type of the embeddings.

    With a block size or a mesh, gradients are made together with the value, in three matrix products, and never more
    than one tile of logits exists at a time; second derivatives are right, but keep all tiles. `jax.jvp` is refused.

    Args:
      image_embeds, text_embeds: matched by row, or by groups.
      logit_scale: log of the temperature, a scalar or (1,), as in the checkpoints.
      logit_bias: added to every logit, a scalar or (1,).
      block_size: rows and columns of the largest tile of logits that is held; None: all at once (with a mesh, one
        tile for each pair of devices); "auto": chosen for the kind of device.
      mesh: the devices over whose `axis` the embeddings are cut; texts travel around them as a ring.
      axis: of the mesh; a tuple if the batch is cut over several, as in `("data", "fsdp")`.
      image_groups, text_groups: an image and a text of the same group match: several captions for an image, or
        several images for a caption. None: they match by row.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: if shapes do not fit each other, or the batch cannot be cut evenly over the devices.

    References:
      Zhai et al. 2023, arXiv 2303.15343, sections 3.2 and 3.3; `SiglipModel(return_loss=True)` of `transformers`.
    """
    pairs = make_pairs(image_embeds, text_embeds, logit_scale, logit_bias, image_groups, text_groups)
    if mesh is not None:
        check_axis(mesh, axis, len(pairs.images), len(pairs.texts))
        return _over_mesh(pairs, mesh, axis, block_size)
    if block_size is not None:
        return sum_over_pairs(pairs, block_size) / len(pairs.images)
    logits = pairwise_logits(pairs.images, pairs.texts, pairs.scale, pairs.bias)
    return sigmoid_loss_of_logits(logits, matching(pairs.image_groups, pairs.text_groups))


@functools.partial(jax.jit, static_argnames=("mesh", "axis", "block_size"))
def _over_mesh(pairs: Pairs, mesh: Mesh, axis: AxisName, block_size: BlockSize) -> Array:
    def mean_of_shares(
        images: Array, texts: Array, image_groups: Array, text_groups: Array, scale: Array, bias: Array
    ) -> Array:
        groups = {"image_groups": image_groups, "text_groups": text_groups}
        share = ring_sigmoid_loss(images, texts, scale, bias, axis_name=axis, block_size=block_size, **groups)
        return lax.pmean(share, axis)

    cut, whole = PartitionSpec(axis), PartitionSpec()
    specs = (cut, cut, cut, cut, whole, whole)
    return jax.shard_map(mean_of_shares, mesh=mesh, in_specs=specs, out_specs=whole)(*pairs)


def check_axis(mesh: Mesh, axis: AxisName, images: int, texts: int) -> None:
    """Refuses a batch that cannot be cut over an axis of a mesh.

    Raises:
      ValueError: with the numbers of images, texts and devices.
    """
    check_mesh(mesh)
    names = (axis,) if isinstance(axis, str) else tuple(axis)
    if missing := [name for name in names if name not in mesh.shape]:
        raise ValueError(f"the mesh has the axes {', '.join(mesh.shape)}, not {', '.join(missing)}; pass axis=…")
    devices = math.prod(mesh.shape[name] for name in names)
    if images % devices or texts % devices:
        raise ValueError(
            f"{images} images and {texts} texts cannot be cut evenly over {devices} devices along {', '.join(names)};"
            " drop or repeat some"
        )
