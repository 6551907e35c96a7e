"""The pairwise sigmoid loss (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", algorithm 1)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def pairwise_logits(
    image_embeds: Float[Array, "images embedding"],
    text_embeds: Float[Array, "texts embedding"],
    logit_scale: Float[Array, "*one"],
    logit_bias: Float[Array, "*one"],
) -> Float[Array, "images texts"]:
    """Returns exp(logit_scale) * image · text + logit_bias for every pair, in float32."""
    # The temperature multiplies every rounding by a hundred: no TF32 or bfloat16 passes here, whatever the default is.
    similarity = jnp.matmul(image_embeds, text_embeds.T, precision="highest", preferred_element_type=jnp.float32)
    scale, bias = (jnp.asarray(x, jnp.float32).reshape(1, 1) for x in (logit_scale, logit_bias))
    return similarity * jnp.exp(scale) + bias


def sigmoid_loss_of_logits(logits: Float[Array, "images texts"]) -> Float[Array, ""]:
    """The loss of a square matrix of logits whose diagonal holds the matching pairs.

    Raises:
      ValueError: if the matrix is not square.
    """
    if logits.shape[0] != logits.shape[1]:
        raise ValueError(
            f"the loss needs as many texts as images, matched by row; got {logits.shape[0]} images and"
            f" {logits.shape[1]} texts"
        )
    # -log sigmoid(-x) = softplus(x) for all pairs; a matching pair has -log sigmoid(x) = softplus(x) - x instead.
    return (jnp.sum(jax.nn.softplus(logits)) - jnp.trace(logits)) / logits.shape[0]


def sigmoid_loss(
    image_embeds: Float[Array, "batch embedding"],
    text_embeds: Float[Array, "batch embedding"],
    logit_scale: Float[Array, "*one"],
    logit_bias: Float[Array, "*one"],
) -> Float[Array, ""]:
    """Mean over images of the sum over texts of −log σ(±logit): + for the matching text, − for all others.

    For embeddings that are already L2-normalised; temperature and bias are learned with the towers. Every pair of the
    batch is a binary problem of its own, so the value grows with the batch, unlike that of a softmax loss.

    Args:
      logit_scale: log of the temperature, a scalar or (1,), as in the checkpoints.
      logit_bias: added to every logit, a scalar or (1,).

    Returns:
      A float32 scalar.

    References:
      Zhai et al. 2023, arXiv 2303.15343, section 3.2; `SiglipModel(return_loss=True)` of `transformers`.
    """
    return sigmoid_loss_of_logits(pairwise_logits(image_embeds, text_embeds, logit_scale, logit_bias))
