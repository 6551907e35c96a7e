"""Programs written for big_vision and its relatives: their trees of parameters, and modules with their signatures."""

from siglip_jax.interop.module import BigVisionModule, big_vision_module
from siglip_jax.interop.trees import from_big_vision, to_big_vision
from siglip_jax.interop.two_towers import BigVisionTwoTowers

__all__ = ["BigVisionModule", "BigVisionTwoTowers", "big_vision_module", "from_big_vision", "to_big_vision"]
