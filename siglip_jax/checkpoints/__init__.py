"""Checkpoints: files to `(config, params)` and back, without building a module."""

from siglip_jax.checkpoints.checkpoint import Checkpoint as Checkpoint
from siglip_jax.checkpoints.load import read_checkpoint as read_checkpoint
from siglip_jax.checkpoints.load import write_checkpoint as write_checkpoint
