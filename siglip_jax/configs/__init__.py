"""Configurations of the whole model and of its towers, and the registry of released checkpoints."""

from siglip_jax.configs.configuration import (
    CONFIGS,
    Config,
    Siglip2Config,
    Siglip2TextConfig,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipTextConfig,
    SiglipVisionConfig,
    TextConfig,
    VisionConfig,
    config_from_dict,
)
from siglip_jax.configs.variants import VARIANTS, Variant, find

__all__ = [
    "CONFIGS",
    "Config",
    "Siglip2Config",
    "Siglip2TextConfig",
    "Siglip2VisionConfig",
    "SiglipConfig",
    "SiglipTextConfig",
    "SiglipVisionConfig",
    "TextConfig",
    "VARIANTS",
    "Variant",
    "VisionConfig",
    "config_from_dict",
    "find",
]
