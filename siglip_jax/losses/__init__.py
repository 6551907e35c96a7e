"""Losses: pure functions of arrays."""

from siglip_jax.losses.ring import ring_sigmoid_loss as ring_sigmoid_loss
from siglip_jax.losses.sigmoid import sigmoid_loss as sigmoid_loss
from siglip_jax.losses.softmax import softmax_loss as softmax_loss
