"""Image processors, and functions that load and resize images."""

from siglip_jax.processing.images.loading import load_image
from siglip_jax.processing.images.resize import resize_and_normalize
from siglip_jax.processing.images.siglip import SiglipImageProcessor, SiglipImageProcessorPil
from siglip_jax.processing.images.siglip2 import Siglip2ImageProcessor

__all__ = [
    "Siglip2ImageProcessor",
    "SiglipImageProcessor",
    "SiglipImageProcessorPil",
    "load_image",
    "resize_and_normalize",
]
