"""The sigmoid loss of a batch that is sharded over devices, for use inside `shard_map` and `pmap`."""

from jax import lax
from jaxtyping import Array, Float, Int

from siglip_jax.losses.tiles import AxisName, BlockSize, make_pairs, sum_over_pairs


def ring_sigmoid_loss(
    image_embeds: Float[Array, "images embedding"],
    text_embeds: Float[Array, "texts embedding"],
    logit_scale: Float[Array, "*one"],
    logit_bias: Float[Array, "*one"],
    *,
    axis_name: AxisName,
    block_size: BlockSize = None,
    image_groups: Int[Array, " images"] | None = None,
    text_groups: Int[Array, " texts"] | None = None,
) -> Float[Array, ""]:
    """Returns this device's share of the sigmoid loss of the global batch; the `pmean` of all shares is the loss.

    The share compares the images of this device with the texts of all devices, which are passed around the ring, so
    that no device gathers the batch. `shard_map` sums the gradients of replicated values by itself: differentiate a
    function that contains the `pmean` of the share. `pmap`, and `shard_map` with `check_vma=False`, do not:
    differentiate the share, whose gradients are those of the sum of all shares, and take the `pmean` of the gradients
    of the parameters afterwards.

    The share must have the same weight in the differentiated function on every device, as in a mean. Other weights
    make gradients NaN, since the gradients of the texts are summed while they are passed around.

    Source: Zhai et al. 2023, arXiv 2303.15343, section 3.3.

    Args:
      image_embeds: L2-normalised embeddings of the images of this device, (images, embedding); every device has the
        same number of images.
      text_embeds: L2-normalised embeddings of the texts of this device, (texts, embedding); every device has the same
        number of texts.
      logit_scale: logarithm of the temperature, as in checkpoints, a scalar or (1,).
      logit_bias: bias added to every logit, a scalar or (1,).
      axis_name: axis of the mesh or of `pmap` over which the batch is sharded; a tuple for several axes.
      block_size: rows and columns of the largest tile of logits in memory; None: one tile for each pair of devices;
        "auto": a size that suits the kind of device.
      image_groups: group id of each image of this device, (images,) integers in one numbering for all devices; an image
        and a text of the same group are a positive pair. None: images and texts match by row.
      text_groups: group id of each text of this device, (texts,) integers in the same numbering; given together with
        `image_groups`.

    Returns:
      A float32 scalar, different on every device.

    Raises:
      ValueError: if shapes do not fit each other, or only one of both groups is given.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> embeds = jnp.eye(2 * jax.local_device_count(), 64).reshape(-1, 2, 64)
      >>> def loss(images, texts):
      ...     share = ring_sigmoid_loss(images, texts, jnp.log(10.0), jnp.array(-10.0), axis_name="devices")
      ...     return lax.pmean(share, "devices")
      >>> shares = jax.pmap(loss, axis_name="devices")(embeds, embeds)
      >>> round(float(shares[0]), 2)
      0.69
    """
    pairs = make_pairs(image_embeds, text_embeds, logit_scale, logit_bias, image_groups, text_groups)
    if image_groups is None:
        rows = pairs.image_groups + lax.axis_index(axis_name) * len(pairs.images)
        pairs = pairs._replace(image_groups=rows, text_groups=rows)
    return sum_over_pairs(pairs, block_size, axis_name) / len(pairs.images)
