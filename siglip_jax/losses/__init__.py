"""Losses of embeddings, captions, views and patches as pure functions of arrays."""

from siglip_jax.losses.captioning import captioning_loss
from siglip_jax.losses.distillation import distillation_loss
from siglip_jax.losses.masked_prediction import masked_prediction_loss, random_patch_mask
from siglip_jax.losses.ring import ring_sigmoid_loss
from siglip_jax.losses.sigmoid import sigmoid_loss
from siglip_jax.losses.softmax import softmax_loss

__all__ = [
    "captioning_loss",
    "distillation_loss",
    "masked_prediction_loss",
    "random_patch_mask",
    "ring_sigmoid_loss",
    "sigmoid_loss",
    "softmax_loss",
]
