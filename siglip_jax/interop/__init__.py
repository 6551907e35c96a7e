"""Programs written for big_vision and its relatives: their trees of parameters, and a module with their signature."""

from siglip_jax.interop.module import BigVisionModule, big_vision_module
from siglip_jax.interop.trees import from_big_vision, to_big_vision

__all__ = ["BigVisionModule", "big_vision_module", "from_big_vision", "to_big_vision"]
