"""Tokenizers, one file per family; none needs torch."""

from siglip_jax.processing.text.siglip import SiglipTokenizer
from siglip_jax.processing.text.siglip2 import Siglip2Tokenizer

__all__ = ["Siglip2Tokenizer", "SiglipTokenizer"]
