"""Turns images and texts into arrays: tokenizers, image processors, and processors that combine the two."""

from siglip_jax.processing.batch import Batch
from siglip_jax.processing.images import (
    Siglip2ImageProcessor,
    SiglipImageProcessor,
    SiglipImageProcessorPil,
    load_image,
    resize_and_normalize,
)
from siglip_jax.processing.processor import SiglipProcessor
from siglip_jax.processing.text import Siglip2Tokenizer, SiglipTokenizer

__all__ = [
    "Batch",
    "Siglip2ImageProcessor",
    "Siglip2Tokenizer",
    "SiglipImageProcessor",
    "SiglipImageProcessorPil",
    "SiglipProcessor",
    "SiglipTokenizer",
    "load_image",
    "resize_and_normalize",
]
