"""The image towers of timm: names of models, what follows from a name, and names of tensors.

A tower of timm stands alone in a repository of timm, and under `visual.trunk.` in one of open_clip.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from siglip_jax.checkpoints.table import LINEAR, SAME, Row, Transform, reshaped
from siglip_jax.configs.configuration import Siglip2VisionConfig, VisionConfig
from siglip_jax.params import LAYER, Shape

TANH, EXACT = "gelu_pytorch_tanh", "gelu"
# Width, depth, MLP width and heads of timm's models; the number of heads cannot be inferred from the shapes.
SIZES = {
    "base": (768, 12, 3072, 12),
    "large": (1024, 24, 4096, 16),
    "so400m": (1152, 27, 4304, 16),
    "giantopt": (1536, 40, 6144, 16),
}
# timm's models with the tanh approximation, with which all SigLIP models were trained; the others use the exact GELU.
_TANH_MODELS = re.compile(r"naflexvit|vit_(base_patch32|large_patch16_siglip(_gap)?_512|so400m_patch16|giantopt)(?!\d)")
_NAMES = re.compile(r"vit_([a-z0-9]+)_patch(\d+)_siglip(_gap)?_(\d+)|naflexvit_([a-z0-9]+)_patch(\d+)_siglip")

# Modules in this package, and in timm: name, index of the part, number of parts.
_MODULES = {
    "post_layernorm": ("norm", 0, 1),
    "head/attention/q_proj": ("attn_pool.q", 0, 1),
    "head/attention/k_proj": ("attn_pool.kv", 0, 2),
    "head/attention/v_proj": ("attn_pool.kv", 1, 2),
    "head/attention/out_proj": ("attn_pool.proj", 0, 1),
    "head/layernorm": ("attn_pool.norm", 0, 1),
    "head/mlp/fc1": ("attn_pool.mlp.fc1", 0, 1),
    "head/mlp/fc2": ("attn_pool.mlp.fc2", 0, 1),
    "layer_norm1": ("norm1", 0, 1),
    "self_attn/q_proj": ("attn.qkv", 0, 3),
    "self_attn/k_proj": ("attn.qkv", 1, 3),
    "self_attn/v_proj": ("attn.qkv", 2, 3),
    "self_attn/out_proj": ("attn.proj", 0, 1),
    "layer_norm2": ("norm2", 0, 1),
    "mlp/fc1": ("mlp.fc1", 0, 1),
    "mlp/fc2": ("mlp.fc2", 0, 1),
}


@dataclasses.dataclass(frozen=True)
class Name:
    """The parts of the name of a model of timm.

    Attributes:
      size: key of `SIZES`.
      patch_size: height and width of a patch in pixels.
      image_size: height and width of an image in pixels; None: any (NaFlex).
      pools: whether the model has the attention pooling head; without it the mean of the patches is taken.
      hidden_act: activation of the model.
    """

    size: str
    patch_size: int
    image_size: int | None
    pools: bool
    hidden_act: str

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return SIZES[self.size][3]


def parsed(name: Any) -> Name | None:
    """Returns the parts of a model's name, such as "vit_base_patch16_siglip_gap_224"; None if it is not SigLIP's."""
    m = _NAMES.fullmatch(str(name))
    if m is None or (m[5] or m[1]) not in SIZES:
        return None
    act = TANH if _TANH_MODELS.match(m[0]) else EXACT
    if m[5]:
        return Name(m[5], int(m[6]), None, True, act)
    return Name(m[1], int(m[2]), int(m[4]), not m[3], act)


def sizes_of(c: VisionConfig) -> tuple[int, ...]:
    """Returns width, depth, MLP width and heads, as in `SIZES`."""
    return (c.hidden_size, c.num_hidden_layers, c.intermediate_size, c.num_attention_heads)


def size_of(c: VisionConfig) -> str | None:
    """Returns the key of `SIZES` for a tower; None if timm has no model of its sizes."""
    return next((name for name, sizes in SIZES.items() if sizes == sizes_of(c)), None)


def image_size_of(c: VisionConfig) -> int:
    """Returns the image size; for a NaFlex model that of a square with the patches of the position table."""
    return c.patch_size * math.isqrt(c.num_patches) if isinstance(c, Siglip2VisionConfig) else c.image_size


def mlp_ratio(mlp: int, width: int) -> float:
    """Returns a ratio for which torch's `int(width * ratio)` equals the MLP width despite rounding."""
    ratio = mlp / width
    return ratio if int(width * ratio) == mlp else math.nextafter(ratio, math.inf)


def tower_sizes(shapes: Mapping[str, Shape], prefix: str = "") -> dict[str, Any]:
    """Returns the fields of a tower's configuration that follow from its tensors.

    Args:
      shapes: shapes of tensors by name.
      prefix: prefix of the names of the tower's tensors.

    Raises:
      KeyError: if a tensor is missing.
    """
    blocks = f"{prefix}blocks."
    fields = {
        "hidden_size": shapes[f"{prefix}norm.weight"][0],
        "intermediate_size": shapes[f"{blocks}0.mlp.fc1.weight"][0],
        "num_hidden_layers": depth(shapes, blocks),
        "vision_use_head": f"{prefix}attn_pool.latent" in shapes,
    }
    table = shapes.get(f"{prefix}embeds.pos_embed")
    return fields if table is None else fields | {"num_patches": table[1] * table[2]}


def depth(shapes: Mapping[str, Shape], blocks: str) -> int:
    """Returns the number of layers whose tensors' names begin with `blocks` and an index."""
    return len({key.removeprefix(blocks).partition(".")[0] for key in shapes if key.startswith(blocks)})


def tower_row(row: Row, naflex: bool, prefix: str = "") -> Row:
    """Returns the row of a parameter of an image tower under the name that timm has for it.

    Args:
      row: row of the parameter in the table of `transformers`.
      naflex: whether the tower is of variable resolution.
      prefix: prefix of the names of the tower's tensors.
    """
    rest = row.path.partition("/")[2]
    if m := LAYER.fullmatch(row.path):
        prefix, rest = f"{prefix}blocks.{m[2]}.", m[3]
    if rest == "embeddings/position_embedding/embedding":
        key = "embeds.pos_embed" if naflex else "pos_embed"
        return Row(row.path, prefix + key, row.shape, _positions(row.shape, naflex))
    if rest == "head/probe":
        return Row(row.path, f"{prefix}attn_pool.latent", row.shape)
    module, _, leaf = rest.rpartition("/")
    end = "bias" if leaf == "bias" else "weight"
    if module == "embeddings/patch_embedding":
        return Row(row.path, f"{prefix}{'embeds' if naflex else 'patch_embed'}.proj.{end}", row.shape, row.transform)
    key, part, parts = _MODULES[module]
    return Row(row.path, f"{prefix}{key}.{end}", row.shape, LINEAR if leaf == "kernel" else SAME, part, parts)


def _positions(shape: Shape, naflex: bool) -> Transform:
    side = math.isqrt(shape[0])
    return reshaped(shape, (1, side, side, shape[1]) if naflex else (1, *shape))
