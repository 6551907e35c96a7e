"""Trees of parameters with the names of big_vision's modules: the towers they hold, their configuration, their table.

The image tower is the subtree with `Transformer`, the text tower the one with `Encoder_0`. They are `img` and `txt` in
a file of SigLIP, and elsewhere in others: at the top for one tower, below `PaliGemma` for pi0, below `vision_encoder`
for Gemma 3. All parameters are below `params` or `opt/target`, or at the top; beside them may be the state of an
optimizer.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from siglip_jax._checks import reason, shown
from siglip_jax.checkpoints.formats.text_head import with_text_head
from siglip_jax.checkpoints.keymap import TEXT, VISION, key_table
from siglip_jax.checkpoints.table import SAME, Row, StoredTensor, Transform, layer_of, reshaped
from siglip_jax.configs.configuration import CONFIGS, Config, Siglip2VisionConfig, TextConfig, VisionConfig
from siglip_jax.configs.towers import tower_config
from siglip_jax.configs.variants import VARIANTS
from siglip_jax.params import LAYER, Shape

PREFIX = "params/"
TOWERS = {TEXT: "txt", VISION: "img"}
ROOTS = {name: f"{root}/" for name, root in TOWERS.items()}
_PREFIXES = (PREFIX, "opt/target/")  # the second: Flax's optimizers before 2021
# Larger models by the path of their image tower; `img` is PaliGemma's beside its language model.
_LARGER = {"PaliGemma/img/": "pi0", "img/": "PaliGemma"} | dict.fromkeys(
    ("vision_encoder/siglip_encoder/", "SigLiPFromPatches_0/siglip_encoder/"), "Gemma 3"
)
_ENCODERS = {TEXT: "Encoder_0", VISION: "Transformer"}
# In old files this tensor holds a part of the position table: "added twice by mistake" (big_vision's loader).
_STRAY = "Encoder_0/pos_embedding"

# The image size need not be a multiple of the patch size: 27 x 27 patches of 14 pixels are published for images of 384
# pixels, not 378.
_IMAGE_SIZES = {
    (v.vision["patch_size"], (v.vision["image_size"] // v.vision["patch_size"]) ** 2): v.vision["image_size"]
    for v in VARIANTS
    if v.model_type == "siglip"
}

# Names of modules in this package, and in big_vision.
_NAMES = (
    ("embeddings/patch_embedding", "embedding"),
    ("embeddings/position_embedding/embedding", "pos_embedding"),
    ("embeddings/token_embedding", "Embed_0"),
    ("post_layernorm", "Transformer/encoder_norm"),
    ("final_layer_norm", "Encoder_0/encoder_norm"),
    ("head/probe", "MAPHead_0/probe"),
    ("head/layernorm", "MAPHead_0/LayerNorm_0"),
    ("head/attention", "MAPHead_0/MultiHeadDotProductAttention_0"),
    ("head/mlp", "MAPHead_0/MlpBlock_0"),
    ("layer_norm1", "LayerNorm_0"),
    ("layer_norm2", "LayerNorm_1"),
    ("self_attn", "MultiHeadDotProductAttention_0"),
    ("mlp", "MlpBlock_0"),
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("out_proj", "out"),
    ("fc1", "Dense_0"),
    ("fc2", "Dense_1"),
)


class Found(NamedTuple):
    """The towers in a tree.

    Attributes:
      tensors: the parameters of the towers and the two scalars of the loss, with an identity for a missing text head.
      layout: what `table` needs beside the configuration, `prefix`, `roots` and `stacked`, and the larger model that
        the towers are a part of, `part_of`, if there is one.
      config: configuration that was given, or follows from the shapes.
    """

    tensors: dict[str, StoredTensor]
    layout: dict[str, Any]
    config: Config


def find(tensors: Mapping[str, StoredTensor], config: Config | None = None) -> Found:
    """Finds the towers in a tree.

    Args:
      tensors: leaves of the tree by path.
      config: configuration of the towers, if it is known.

    Returns:
      The towers; everything else in the tree is left out if it is part of another model.

    Raises:
      ValueError: if there is no tower, more than one of a kind, or one whose shapes are not those of SigLIP.
    """
    prefix = next((p for p in _PREFIXES if any(key.startswith(p) for key in tensors)), "")
    below = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    roots, larger = _roots(below), None
    if len(roots) < len(TOWERS) or any(key.startswith("llm/") for key in below):  # a part of a larger model
        if any(not key.startswith(tuple(roots.values())) for key in set(below) - set(_scalars(roots).values())):
            larger = _LARGER.get(roots.get(VISION, ""), "a larger model")
        scalars = set(_scalars(roots).values()) if len(roots) == len(TOWERS) else set()
        projection = f"{roots.get(VISION)}head/"  # to the width of the larger model
        below = {
            key: t
            for key, t in below.items()
            if key in scalars or key.startswith(tuple(roots.values())) and not key.startswith(projection)
        }
    if TEXT in roots:
        below = _without_stray(below, roots[TEXT])
        names = (roots[TEXT] + name for name in ("Embed_0/embedding", "head/kernel", "head/bias"))
        below = with_text_head(below, *names)
    shapes = {key: t.shape for key, t in below.items()}
    blocks = {name: f"{root}{_ENCODERS[name]}/encoderblock" for name, root in roots.items()}
    stacked = [name for name in roots if any(key.startswith(f"{blocks[name]}/") for key in shapes)]
    layout: dict[str, Any] = {"prefix": prefix, "roots": roots, "stacked": stacked}
    if larger is not None:
        layout["part_of"] = larger
    config = _config(shapes, roots, blocks) if config is None else config
    return Found({prefix + key: t for key, t in below.items()}, layout, config)


def _roots(keys: Iterable[str]) -> dict[str, str]:
    """Returns the path of each tower with its final "/", "" at the top."""
    keys = list(keys)
    if (token := next((key for key in keys if key.rpartition("/")[2] == "cls"), None)) is not None:
        raise ValueError(
            f"the image tower must have no class token, as SigLIP's, got one at {shown(token)}, as those of OpenVision,"
            " TIPS and ViT; use the program that trained it"
        )
    roots = {}
    for name, encoder in _ENCODERS.items():
        pattern = re.compile(rf"((?:.*/)?){encoder}/")
        found = sorted({m[1] for key in keys if (m := pattern.match(key))})
        if len(found) > 1:
            raise ValueError(
                f"the tree must hold one {TOWERS[name]} tower, got {len(found)}, at {shown(found[:4])}; save only one"
            )
        if found:
            roots[name] = found[0]
    if not roots:
        tops = {key.partition("/")[0] for key in keys}
        some = shown(sorted(tops)[:4]) if tops else "nothing"
        raise ValueError(
            f"names must begin with img/ or txt/ as in SigLIP of big_vision, or hold one of its towers, got {some};"
            " use a SigLIP checkpoint"
        )
    return roots


def _scalars(roots: Mapping[str, str]) -> dict[str, str]:
    """Returns the names of the two scalars of the loss, which are beside the towers."""
    beside = re.sub(r"[^/]+/$", "", next(iter(roots.values())))
    return {"logit_scale": f"{beside}t", "logit_bias": f"{beside}b"}


def _without_stray(tensors: dict[str, StoredTensor], root: str) -> dict[str, StoredTensor]:
    """Adds the second position table of some old files to the first, as big_vision does."""
    stray, table = tensors.get(root + _STRAY), tensors.get(f"{root}pos_embedding")
    tensors = {key: t for key, t in tensors.items() if key != root + _STRAY}
    if stray is not None and table is not None and stray.shape == table.shape:
        both = dataclasses.replace(table, view=lambda: table.view() + stray.view())
        tensors[f"{root}pos_embedding"] = both
    return tensors


def table(config: Config, architecture: str, layout: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of all parameters with these names.

    Args:
      config: configuration of the model class.
      architecture: name of the model class.
      layout: may hold `prefix` (prefix of every name), `roots` (path of each tower, with its final "/"), `stacked`
        (towers whose layers are stacked) and `text_head` (False if the text head is omitted).

    Raises:
      ValueError: if there is no name for a parameter.
    """
    rows = []
    for row in key_table(config, architecture):
        if row.path.startswith("text_model/head/") and not layout.get("text_head", True):
            continue
        rows.append(_row(row, config, layout))
    return rows


def _row(row: Row, config: Config, layout: Mapping[str, Any]) -> Row:
    prefix, roots = layout.get("prefix", PREFIX), {**ROOTS, **layout.get("roots", {})}
    if row.path in ("logit_scale", "logit_bias"):
        return Row(row.path, prefix + _scalars(roots)[row.path], row.shape)
    name, _, rest = row.path.partition("/")
    if name not in TOWERS:
        raise ValueError(
            f"a checkpoint for big_vision must be a model without a classifier, got {row.path}; convert the model"
            " without its classifier"
        )
    root = roots[name]
    tower = tower_config(config, name)
    transform = _transform(rest, row.shape, tower)
    if not (m := LAYER.fullmatch(row.path)):
        return Row(row.path, f"{prefix}{root}{_rename(rest)}", row.shape, transform)
    at = f"{prefix}{root}{_ENCODERS[name]}/encoderblock"
    if name in layout.get("stacked", ()):
        depth = tower.num_hidden_layers
        return Row(row.path, f"{at}/{_rename(m[3])}", row.shape, layer_of(transform), int(m[2]), depth)
    return Row(row.path, f"{at}_{m[2]}/{_rename(m[3])}", row.shape, transform)


def _rename(path: str) -> str:
    for ours, theirs in _NAMES:
        path = re.sub(rf"(^|/){ours}(?=/|$)", rf"\g<1>{theirs}", path)
    return path


def _transform(path: str, shape: Shape, tower: TextConfig | VisionConfig) -> Transform:
    heads, width = tower.num_attention_heads, tower.hidden_size
    size = width // heads
    if m := re.search(r"(?:self_attn|attention)/(q|k|v|out)_proj/(kernel|bias)$", path):
        if m[1] == "out":
            return reshaped(shape, (heads, size, width)) if m[2] == "kernel" else SAME
        return reshaped(shape, (width, heads, size) if m[2] == "kernel" else (heads, size))
    if path == "embeddings/position_embedding/embedding":
        side = math.isqrt(shape[0])
        square = isinstance(tower, Siglip2VisionConfig)
        return reshaped(shape, (side, side, width) if square else (1, *shape))
    return SAME


def _config(shapes: Mapping[str, Shape], roots: Mapping[str, str], blocks: Mapping[str, str]) -> Config:
    """Returns the configuration that follows from the shapes.

    Raises:
      ValueError: if they are not those of SigLIP.
    """
    towers: dict[str, dict[str, Any]] = {}
    try:
        if VISION in roots:
            towers["vision_config"] = _vision(shapes, roots[VISION], blocks[VISION])
        if TEXT in roots:
            towers["text_config"] = _text(shapes, roots[TEXT], blocks[TEXT])
    except KeyError as error:
        raise ValueError(f"the names must be those of SigLIP of big_vision, got none of {error}") from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"the shapes must be those of SigLIP of big_vision, got others ({reason(error)})") from error
    family = "siglip2" if "num_patches" in towers.get("vision_config", ()) else "siglip"
    if len(towers) == 2:
        towers["vision_config"]["average_pooling"] = not towers["vision_config"]["vision_use_head"]
        return CONFIGS[family].from_dict(towers)
    kind, tower = next(iter(towers.items()))
    return CONFIGS[f"{family}_{kind.removesuffix('_config')}_model"].from_dict(tower)


def _encoder(shapes: Mapping[str, Shape], at: str) -> dict[str, int]:
    names = ("MultiHeadDotProductAttention_0/query/kernel", "MlpBlock_0/Dense_0/kernel")
    if (stack := shapes.get(f"{at}/{names[0]}")) is not None:
        depth, width, heads, _ = stack
        mlp = shapes[f"{at}/{names[1]}"][2]
    else:
        width, heads, _ = shapes[f"{at}_0/{names[0]}"]
        mlp = shapes[f"{at}_0/{names[1]}"][1]
        depth = len({m[0] for key in shapes if (m := re.match(rf"{re.escape(at)}_\d+(?=/)", key))})
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
    }


def _text(shapes: Mapping[str, Shape], root: str, blocks: str) -> dict[str, Any]:
    encoder = _encoder(shapes, blocks)
    return encoder | {
        "vocab_size": shapes[f"{root}Embed_0/embedding"][0],
        "max_position_embeddings": shapes[f"{root}pos_embedding"][1],
        "projection_size": shapes.get(f"{root}head/kernel", (0, encoder["hidden_size"]))[1],
    }


def _vision(shapes: Mapping[str, Shape], root: str, blocks: str) -> dict[str, Any]:
    kernel, positions = shapes[f"{root}embedding/kernel"], shapes[f"{root}pos_embedding"]
    found = _encoder(shapes, blocks) | {"vision_use_head": f"{root}MAPHead_0/probe" in shapes}
    if len(kernel) == 2:  # NaFlex; released with three channels only
        return found | {"num_patches": positions[0] * positions[1], "patch_size": math.isqrt(kernel[0] // 3)}
    return found | image_sizes(kernel, positions[1])


def image_sizes(kernel: Shape, positions: int) -> dict[str, int]:
    """Returns the fields that follow from the shape of the patch embedding's kernel and the number of positions."""
    patch, _, channels, _ = kernel
    size = _IMAGE_SIZES.get((patch, positions), math.isqrt(positions) * patch)
    return {"num_channels": channels, "patch_size": patch, "image_size": size}
