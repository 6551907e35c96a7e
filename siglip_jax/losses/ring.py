"""The sigmoid loss of a batch that is cut over devices, for use inside `shard_map` and `pmap`."""

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
    """This device's share of the sigmoid loss of the global batch; the `pmean` of the shares is the loss.

    The share compares the images of this device with the texts of all devices, which travel around the ring.
    `shard_map` sums the gradients of what all devices hold by itself: take the `pmean` of the share inside what is
    differentiated. `pmap`, and `shard_map` with `check_vma=False`, do not: differentiate the share, whose gradients are
    those of the sum of all shares, and take the `pmean` of the gradients of the parameters afterwards.

    The shares must enter what is differentiated with the same weight on every device, as they do in a mean; other
    weights give NaN gradients, since the texts' gradients are summed up on the way.

    Args:
      image_embeds, text_embeds: those of this device, L2-normalised; as many on every device.
      logit_scale: log of the temperature, a scalar or (1,).
      logit_bias: a scalar or (1,).
      axis_name: of the mesh or of `pmap`; a tuple for a batch that is cut over several axes.
      block_size: rows and columns of the largest tile of logits that is held; None: one tile for each pair of devices;
        "auto": chosen for the kind of device.
      image_groups, text_groups: global; an image and a text of the same group match. None: they match by row.

    Raises:
      ValueError: if shapes do not fit each other.

    References:
      Zhai et al. 2023, arXiv 2303.15343, section 3.3.
    """
    pairs = make_pairs(image_embeds, text_embeds, logit_scale, logit_bias, image_groups, text_groups)
    if image_groups is None:
        rows = pairs.image_groups + lax.axis_index(axis_name) * len(pairs.images)
        pairs = pairs._replace(image_groups=rows, text_groups=rows)
    return sum_over_pairs(pairs, block_size, axis_name) / len(pairs.images)
