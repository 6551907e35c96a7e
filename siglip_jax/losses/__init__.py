"""Losses of image and text embeddings as pure functions of arrays."""

from siglip_jax.losses.ring import ring_sigmoid_loss
from siglip_jax.losses.sigmoid import sigmoid_loss
from siglip_jax.losses.softmax import softmax_loss

__all__ = ["ring_sigmoid_loss", "sigmoid_loss", "softmax_loss"]
