"""Linen modules, their outputs, and their cost in operations and memory."""

from typing import TYPE_CHECKING

from siglip_jax._lazy import make_lazy
from siglip_jax.models.classifier import SiglipForImageClassification
from siglip_jax.models.features import average_pool, map_mask
from siglip_jax.models.naflex import Siglip2ForImageClassification, Siglip2Model, Siglip2TextModel, Siglip2VisionModel
from siglip_jax.models.outputs import ImageClassifierOutput, SiglipOutput, TowerOutput
from siglip_jax.models.placement import place_params
from siglip_jax.models.pmap import pmap_forward
from siglip_jax.models.siglip import SiglipModel, SiglipTextModel, SiglipVisionModel

if TYPE_CHECKING:
    from siglip_jax.models.cost import mesh_memory

__all__ = [
    "ImageClassifierOutput",
    "Siglip2ForImageClassification",
    "Siglip2Model",
    "Siglip2TextModel",
    "Siglip2VisionModel",
    "SiglipForImageClassification",
    "SiglipModel",
    "SiglipOutput",
    "SiglipTextModel",
    "SiglipVisionModel",
    "TowerOutput",
    "average_pool",
    "map_mask",
    "mesh_memory",
    "place_params",
    "pmap_forward",
]

make_lazy(__name__, {"mesh_memory": "siglip_jax.models.cost"})
