"""Linen modules, their outputs, and their cost in operations and memory."""

from siglip_jax.models.classifier import SiglipForImageClassification
from siglip_jax.models.cost import mesh_memory
from siglip_jax.models.naflex import Siglip2ForImageClassification, Siglip2Model, Siglip2TextModel, Siglip2VisionModel
from siglip_jax.models.outputs import ImageClassifierOutput, SiglipOutput, TowerOutput
from siglip_jax.models.placement import place_params
from siglip_jax.models.pmap import pmap_forward
from siglip_jax.models.siglip import SiglipModel, SiglipTextModel, SiglipVisionModel

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
    "mesh_memory",
    "place_params",
    "pmap_forward",
]
