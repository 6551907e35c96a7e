"""The sigmoid loss of each pair alone, within a batch: how difficult the batch finds it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from siglip_jax.losses.sigmoid import check_axis
from siglip_jax.losses.tiles import AxisName

BLOCK = 1024  # embeddings that all others are compared with at a time


def pair_losses(
    image_embeds: Float[Array, "pairs embedding"],
    text_embeds: Float[Array, "pairs embedding"],
    logit_scale: Float[Array, "..."],
    logit_bias: Float[Array, "..."],
    *,
    block_size: int = BLOCK,
    mesh: Mesh | None = None,
    axis: AxisName = "data",
) -> Float[Array, " pairs"]:
    """Returns for each pair the mean of the loss of its image with all texts, and of its text with all images.

    Their mean over the batch is `sigmoid_loss`. No array of all pairs is kept.

    Args:
      image_embeds: L2-normalised embeddings of images, (n, E).
      text_embeds: L2-normalised embeddings of texts, (n, E); row i belongs to image i.
      logit_scale: logarithm of the temperature, a scalar or one value.
      logit_bias: bias of the logits, a scalar or one value.
      block_size: embeddings that all others are compared with at a time.
      mesh: mesh over whose `axis` the pairs are sharded; None: one device.
      axis: axis or axes of the mesh.

    Returns:
      (n,) float32.

    Raises:
      ValueError: if the pairs cannot be sharded evenly over the mesh.

    Example:
      >>> import jax.numpy as jnp
      >>> from siglip_jax import sigmoid_loss
      >>> images, texts, scale, bias = jnp.eye(3, 4), jnp.eye(3, 4), jnp.float32(2.0), jnp.float32(-1.0)
      >>> losses = pair_losses(images, texts, scale, bias)
      >>> bool(jnp.isclose(losses.mean(), sigmoid_loss(images, texts, scale, bias)))
      True
    """
    images, texts = jnp.asarray(image_embeds), jnp.asarray(text_embeds)
    scale = jnp.exp(jnp.asarray(logit_scale, jnp.float32).reshape(()))
    bias = jnp.asarray(logit_bias, jnp.float32).reshape(())
    if mesh is None:
        return _losses(images, texts, images, texts, scale, bias, block_size)
    check_axis(mesh, axis, images=len(images), texts=len(texts))

    def of_shard(images: Array, texts: Array, scale: Array, bias: Array) -> Array:
        all_images, all_texts = (lax.all_gather(x, axis, tiled=True) for x in (images, texts))
        return _losses(images, texts, all_images, all_texts, scale, bias, block_size)

    rows, whole = PartitionSpec(axis), PartitionSpec()
    over: dict[str, Any] = {"mesh": mesh, "in_specs": (rows, rows, whole, whole), "out_specs": rows}
    return jax.shard_map(of_shard, **over, check_vma=False)(images, texts, scale, bias)


def _losses(
    images: Array, texts: Array, all_images: Array, all_texts: Array, scale: Array, bias: Array, block_size: int
) -> Array:
    """Returns the losses of some pairs within all."""

    def against(rows: Array, others: Array) -> Array:
        """Returns the sum over all others of the loss that each row would have if none were its own."""
        blocks = -(-len(others) // block_size)
        padded = jnp.pad(others, ((0, blocks * block_size - len(others)), (0, 0)))
        there = (jnp.arange(blocks * block_size) < len(others)).reshape(blocks, block_size)

        def one(block: tuple[Array, Array]) -> Array:
            columns, present = block
            logits = jnp.matmul(rows, columns.T, preferred_element_type=jnp.float32) * scale + bias
            return jnp.sum(jnp.where(present, jax.nn.softplus(logits), 0.0), axis=1)

        return jnp.sum(lax.map(one, (padded.reshape(blocks, block_size, -1), there)), axis=0)

    own = jnp.sum(images.astype(jnp.float32) * texts.astype(jnp.float32), axis=1) * scale + bias
    return 0.5 * (against(images, all_texts) + against(texts, all_images)) - own
