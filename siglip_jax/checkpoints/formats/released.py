"""The configuration of a weights file without a `config.json`, where its shapes are those of a released checkpoint."""

import math
import re
from collections.abc import Mapping
from typing import Any

from siglip_jax.checkpoints.keymap import TEXT, VISION
from siglip_jax.configs.configuration import CONFIGS, Config, SiglipConfig
from siglip_jax.configs.variants import VARIANTS, Variant
from siglip_jax.params import Shape

_LAYER = re.compile(r"encoder\.layers\.(\d+)\.mlp\.fc1\.weight")


def released_config(shapes: Mapping[str, Shape]) -> Config | None:
    """Returns the configuration of the released checkpoint, or of its tower, that some tensors are of.

    Args:
      shapes: shapes of the tensors by their names in a Hugging Face checkpoint; the names of a single tower may lack
        `text_model.` or `vision_model.`.

    Returns:
      The configuration; None if no released checkpoint has these shapes.
    """
    sizes = {part: _sizes(shapes, f"{part}.") for part in (TEXT, VISION)}
    if not any(sizes.values()):
        bare = _sizes(shapes, "")
        sizes = {TEXT: bare if "vocab_size" in bare else {}, VISION: bare if "patches" in bare else {}}
    if not any(sizes.values()):
        return None
    variant = next((v for v in VARIANTS if _fits(v, sizes[TEXT], sizes[VISION])), None)
    if variant is None:
        return None
    towers = {"text_config": dict(variant.text), "vision_config": dict(variant.vision)}
    config: SiglipConfig = CONFIGS[variant.model_type].from_dict(towers)
    head = any(key.endswith("head.probe") for key in shapes)
    vision = config.vision_config.replace(vision_use_head=head)
    if sizes[TEXT] and sizes[VISION]:
        return config.replace(vision_config=vision)
    classifier = shapes.get("classifier.weight")
    if classifier is not None and sizes[VISION]:
        return config.replace(vision_config=vision, num_labels=classifier[0])
    return config.text_config if sizes[TEXT] else vision


def _sizes(shapes: Mapping[str, Shape], prefix: str) -> dict[str, Any]:
    """Returns the sizes of a tower by the names that a variant has for them, {} if it is not there."""
    found = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    layers = {m[1]: shape for key, shape in found.items() if (m := _LAYER.fullmatch(key))}
    if not layers or any(len(shape) != 2 for shape in layers.values()):
        return {}
    mlp, width = next(iter(layers.values()))
    sizes = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": len(layers)}
    positions = found.get("embeddings.position_embedding.weight", ())
    tokens = found.get("embeddings.token_embedding.weight", ())
    patch = found.get("embeddings.patch_embedding.weight", ())
    if len(positions) == 2 and len(tokens) == 2:
        head = found.get("head.weight", ())
        embeddings = {"vocab_size": tokens[0], "max_position_embeddings": positions[0]}
        return sizes | embeddings | {"projection_size": head[0] if len(head) == 2 else width}
    if len(positions) == 2 and len(patch) in (2, 4):
        return sizes | {"patches": positions[0], "patch": patch[-1], "flat": len(patch) == 2}
    return {}


def _fits(variant: Variant, text: Mapping[str, Any], vision: Mapping[str, Any]) -> bool:
    fields = {"projection_size": variant.text["hidden_size"], **variant.text}
    if any(fields[name] != value for name, value in text.items()):
        return False
    if not vision:
        return True
    v, patch = variant.vision, variant.vision["patch_size"]
    flat = variant.image_size is None
    count = v["num_patches"] if flat else (v["image_size"] // patch) ** 2
    found = (vision["patches"], math.isqrt(vision["patch"] // 3) if vision["flat"] else vision["patch"], vision["flat"])
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers")
    return found == (count, patch, flat) and all(v[name] == vision[name] for name in sizes)
