"""Image towers of SigLIP inside larger models, found by their tensors, and their configurations.

The tensors determine the sizes of a tower; the larger model's `config.json`, where it describes the tower, the rest.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from siglip_jax._checks import shown
from siglip_jax.checkpoints.keymap import VISION
from siglip_jax.configs.configuration import Siglip2VisionConfig, SiglipVisionConfig, VisionConfig
from siglip_jax.params import Shape

PATCHES, POSITIONS = "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"
_PARTS = ("embeddings.patch_embedding.", POSITIONS, "encoder.layers.", "post_layernorm.", "head.")
_OTHERS = ("embeddings.class_embedding", "pre_layrnorm.weight")  # of CLIP
_RENAMED = {".self_attn.projection_layer.": ".self_attn.out_proj."}  # Janus
HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}
"""Attention heads of every released image tower by its width."""


class _Kind(NamedTuple):
    """What a `model_type` says of a tower where `config.json` is silent."""

    heads: int | None = None  # None: those of the released tower of this width
    hidden_act: str = "gelu_pytorch_tanh"
    bucket_positions: bool = False


# By the `model_type` of a tower, or of a larger model where that of the tower is absent.
_KINDS = {
    "siglip": _Kind(12),
    "siglip_vision_model": _Kind(12),
    "siglip2_vision_model": _Kind(12),
    "idefics2": _Kind(12, bucket_positions=True),
    "idefics3": _Kind(16, bucket_positions=True),
    "smolvlm": _Kind(16, bucket_positions=True),
    "phi4_multimodal": _Kind(16, bucket_positions=True),
    "janus_vision_model": _Kind(16, "gelu"),
    "granite_docling": _Kind(12),
}
# Larger models whose own code computes the positions, whatever their tower calls itself.
_BUCKETED = ("minicpmv", "minicpmo", "phi4mm", "smolvla")
_MOST_DEPTH = 8  # of a configuration within others


def find_towers(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Finds the image towers among the tensors of a model.

    Args:
      names: names of all tensors.

    Returns:
      For each tower its prefix, and by the name of each tensor in a `SiglipVisionModel` the name in the file.
    """
    names = list(names)
    known = set(names)
    prefixes = [
        prefix
        for prefix in (name.removesuffix(PATCHES) for name in names if name.endswith(PATCHES))
        if {prefix + POSITIONS, f"{prefix}post_layernorm.weight"} <= known
        and not known.intersection(prefix + other for other in _OTHERS)
    ]
    return {prefix: dict(_renamed(prefix, names)) for prefix in prefixes}


def _renamed(prefix: str, names: list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        if name.startswith(prefix) and name.startswith(_PARTS, len(prefix)):
            own = name[len(prefix) :]
            for other, ours in _RENAMED.items():
                own = own.replace(other, ours)
            yield f"{VISION}.{own}", name


def tower_config(d: Mapping[str, Any], shapes: Mapping[str, Shape]) -> VisionConfig:
    """Returns the configuration of an image tower inside a larger model.

    Args:
      d: `config.json` of the larger model.
      shapes: shapes of the tower's tensors by their names in a `SiglipVisionModel`.

    Raises:
      ValueError: if the tower is not SigLIP's, or neither `d` nor its width says how many heads it has.
    """
    part = described_tower(d)
    whole = str(d.get("model_type") or d.get("type"))
    stated = part.get("model_type")
    name = (whole if stated is None else str(stated)).removesuffix("_vision")
    kind = _KINDS.get(name) or _Kind()
    if stated is not None and name not in (*_KINDS, *_BUCKETED):
        raise ValueError(
            f"the image tower must be of one of {', '.join(_KINDS)}, got model_type {shown(stated)}, which may compute"
            " something else from tensors of the same names; read it with the library it is from"
        )
    if part.get("use_qk_norm"):
        raise ValueError("the image tower must not normalise its queries and keys, got use_qk_norm; read it elsewhere")
    sizes = _sizes(shapes)
    heads = kind.heads if part else None
    fields = {
        **sizes,
        "num_attention_heads": HEADS.get(sizes["hidden_size"]) if heads is None else heads,
        "hidden_act": kind.hidden_act,
        **{key: _square(key, value) for key, value in part.items() if value is not None},
        "vision_use_head": sizes["vision_use_head"],  # others write no such field, and its default has a head
        "model_type": _class_of(shapes).model_type,
    }
    if d.get("drop_vision_last_layer") and part.get("num_hidden_layers") == sizes["num_hidden_layers"] + 1:
        fields["num_hidden_layers"] = sizes["num_hidden_layers"]
    if fields["num_attention_heads"] is None:
        raise ValueError(
            f"config.json must describe an image tower of width {sizes['hidden_size']}, since only the heads of the"
            f" widths {', '.join(map(str, HEADS))} are known, got no vision_config; add one with num_attention_heads"
        )
    if kind.bucket_positions or whole in _BUCKETED:
        fields["bucket_positions"] = True
    return _class_of(shapes).from_dict(fields)


def described_tower(d: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the part of a larger model's `config.json` that describes the image tower; {} if there is none.

    Args:
      d: contents of the file.
    """
    parts = list(_parts(d))
    towers = [part for key, part in parts if key == "vision_config"]
    others = [part for _, part in parts if "vision_config" not in part]
    named = (part for part in (*towers, *others) if str(part.get("model_type")).removesuffix("_vision") in _KINDS)
    return next(named, None) or next(iter(towers), {})


def _parts(d: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the objects within an object and their keys, outer ones first."""
    level: list[Mapping[str, Any]] = [d]
    for _ in range(_MOST_DEPTH):
        found = [(key, part) for outer in level for key, part in outer.items() if isinstance(part, Mapping)]
        yield from found
        level = [part for _, part in found]


def _class_of(shapes: Mapping[str, Shape]) -> type[SiglipVisionConfig] | type[Siglip2VisionConfig]:
    """Returns the class of the configuration: patches are flat in a tower of variable resolution."""
    return Siglip2VisionConfig if len(shapes[f"{VISION}.{PATCHES}"]) == 2 else SiglipVisionConfig


def _sizes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Returns the fields of a tower's configuration that its tensors determine."""
    patches, positions = (tuple(shapes[f"{VISION}.{name}"]) for name in (PATCHES, POSITIONS))
    if len(patches) not in (2, 4) or len(positions) != 2 or not math.prod(patches + positions):
        raise ValueError(
            f"the image tower must have patches of 2 or 4 axes and positions of 2, got {shown(patches)} and"
            f" {shown(positions)}; use a SigLIP tower"
        )
    layers = {name.split(".")[3] for name in shapes if name.startswith(f"{VISION}.encoder.layers.")}
    fc1 = shapes.get(f"{VISION}.encoder.layers.0.mlp.fc1.weight", (1,))
    found = {
        "hidden_size": patches[0],
        "intermediate_size": fc1[0] if fc1 else 1,
        "num_hidden_layers": len(layers),
        "vision_use_head": f"{VISION}.head.probe" in shapes,
    }
    if len(patches) == 2:
        side = math.isqrt(patches[1] // 3)
        return found | {"patch_size": side, "num_patches": positions[0]}
    side = math.isqrt(positions[0]) * patches[2]
    return found | {"num_channels": patches[1], "patch_size": patches[2], "image_size": side}


def _square(key: str, value: Any) -> Any:
    """Returns the side of a square that `config.json` may hold as [height, width]; other values unchanged."""
    if key in ("image_size", "patch_size") and isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        return value[0]
    return value
