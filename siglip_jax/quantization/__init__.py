"""Quantized weights: the number formats, and the rules that select the quantized layers."""

from siglip_jax.quantization.layers import QUANTIZATION_RULES, holds_quantized, is_quantized
from siglip_jax.quantization.schemes import SCHEMES, Quantized, Scheme, dequantize, multiply_int8, quantize

__all__ = [
    "QUANTIZATION_RULES",
    "Quantized",
    "SCHEMES",
    "Scheme",
    "dequantize",
    "holds_quantized",
    "is_quantized",
    "multiply_int8",
    "quantize",
]
