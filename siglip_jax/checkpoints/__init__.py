"""Checkpoints: reading files into a configuration and parameters, and writing them, without building a module."""

from typing import TYPE_CHECKING

from siglip_jax._lazy import make_lazy
from siglip_jax.checkpoints.checkpoint import Checkpoint, Contents
from siglip_jax.checkpoints.read import read_checkpoint, read_contents
from siglip_jax.checkpoints.write import write_checkpoint

if TYPE_CHECKING:
    from siglip_jax.checkpoints.convert import Conversion, convert
    from siglip_jax.checkpoints.describe import describe
    from siglip_jax.checkpoints.layouts import LAYOUTS, Layout
    from siglip_jax.checkpoints.verify import Check, verify
    from siglip_jax.checkpoints.write_tower import write_tower

__all__ = [
    "Check",
    "Checkpoint",
    "Contents",
    "Conversion",
    "LAYOUTS",
    "Layout",
    "convert",
    "describe",
    "read_checkpoint",
    "read_contents",
    "verify",
    "write_checkpoint",
    "write_tower",
]

make_lazy(
    __name__,
    {
        "Check": "siglip_jax.checkpoints.verify",
        "Conversion": "siglip_jax.checkpoints.convert",
        "LAYOUTS": "siglip_jax.checkpoints.layouts",
        "Layout": "siglip_jax.checkpoints.layouts",
        "convert": "siglip_jax.checkpoints.convert",
        "describe": "siglip_jax.checkpoints.describe",
        "verify": "siglip_jax.checkpoints.verify",
        "write_tower": "siglip_jax.checkpoints.write_tower",
    },
)
