"""Checkpoints: reading files into a configuration and parameters, and writing them, without building a module."""

from siglip_jax.checkpoints.checkpoint import Checkpoint, Contents
from siglip_jax.checkpoints.convert import Conversion, convert
from siglip_jax.checkpoints.describe import describe
from siglip_jax.checkpoints.read import read_checkpoint, read_contents
from siglip_jax.checkpoints.verify import Check, verify
from siglip_jax.checkpoints.write import write_checkpoint

__all__ = [
    "Check",
    "Checkpoint",
    "Contents",
    "Conversion",
    "convert",
    "describe",
    "read_checkpoint",
    "read_contents",
    "verify",
    "write_checkpoint",
]
