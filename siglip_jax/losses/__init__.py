"""Losses: pure functions of arrays."""

from siglip_jax.losses.sigmoid import sigmoid_loss as sigmoid_loss
