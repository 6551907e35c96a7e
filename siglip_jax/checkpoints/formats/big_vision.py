"""The .npz files of big_vision, in which Google publishes SigLIP: the `two_towers` model with `img` and `txt`.

Mirrors `two_towers.load`, `vit.load` and `text_transformer.load`: layers are separate or stacked for a scan, names have
the prefix `params/` or not, bfloat16 is stored as raw bytes, and a file may hold one tower. A text tower without `head`
is read with an identity, and an exact identity is not written. The configuration is inferred from the shapes; files
written here also store it in the comment of the archive, which numpy and big_vision ignore.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siglip_jax._checks import reason, shown
from siglip_jax._files import naming, written_aside
from siglip_jax.checkpoints.checkpoint import Checkpoint, Contents
from siglip_jax.checkpoints.formats._format import Format
from siglip_jax.checkpoints.formats.text_head import is_identity, with_text_head, without_text_head
from siglip_jax.checkpoints.keymap import TEXT, VISION, architecture_of, key_table
from siglip_jax.checkpoints.npz_file import read_npz, write_npz
from siglip_jax.checkpoints.table import SAME, Row, StoredTensor, Transform, layer_of, new_tensors, reshaped
from siglip_jax.configs.config_json import describes_a_model
from siglip_jax.configs.configuration import (
    CONFIGS,
    Config,
    Siglip2VisionConfig,
    TextConfig,
    VisionConfig,
    config_from_dict,
)
from siglip_jax.configs.variants import VARIANTS
from siglip_jax.params import LAYER, Shape

PREFIX = "params/"
_TOWERS = {TEXT: "txt", VISION: "img"}
_BLOCKS = {TEXT: "txt/Encoder_0/encoderblock", VISION: "img/Transformer/encoderblock"}
# In old files this tensor holds a part of the position table: "added twice by mistake" (big_vision's loader).
_STRAY = "txt/Encoder_0/pos_embedding"
_OTHERS = ("llm/", "img/head/")  # other tensors of a model with an image tower, such as PaliGemma

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


def recognises(path: Path) -> bool:
    """Returns whether a path is an .npz file, or a directory with exactly one."""
    return _file(path) is not None


def _file(path: Path) -> Path | None:
    if path.is_dir():
        files = list(path.glob("*.npz"))
        return files[0] if len(files) == 1 else None
    return path if path.suffix == ".npz" else None


def table(config: Config, architecture: str, layout: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of all parameters in this format.

    Args:
      config: configuration of the model class.
      architecture: name of the model class.
      layout: may hold `prefix` (prefix of every name), `stacked` (towers whose layers are stacked) and `text_head`
        (False if the text head is omitted).

    Raises:
      ValueError: if the format has no name for a parameter.
    """
    rows = []
    for row in key_table(config, architecture):
        if row.path.startswith("text_model/head/") and not layout.get("text_head", True):
            continue
        rows.append(_row(row, config, layout))
    return rows


def _row(row: Row, config: Config, layout: Mapping[str, Any]) -> Row:
    prefix = layout.get("prefix", PREFIX)
    if row.path in ("logit_scale", "logit_bias"):
        return Row(row.path, prefix + {"logit_scale": "t", "logit_bias": "b"}[row.path], row.shape)
    name, _, rest = row.path.partition("/")
    if name not in _TOWERS:
        raise ValueError(
            f"a checkpoint for big_vision must be a model without a classifier, got {row.path}; convert the model"
            " without its classifier"
        )
    root = _TOWERS[name]
    tower: Any = getattr(config, f"{name.removesuffix('_model')}_config", config)
    transform = _transform(rest, row.shape, tower)
    if not (m := LAYER.fullmatch(row.path)):
        return Row(row.path, f"{prefix}{root}/{_rename(rest)}", row.shape, transform)
    at = prefix + _BLOCKS[name]
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


def read_contents(path: Path) -> Contents:
    """Reads the headers of a file.

    Raises:
      ValueError: if the file is corrupt or of another model.
    """
    file = _file(path) or path
    tensors, comment = read_npz(file)
    prefix = PREFIX if any(key.startswith(PREFIX) for key in tensors) else ""
    shapes = {key.removeprefix(prefix): t.shape for key, t in tensors.items()}
    roots = {key.partition("/")[0] for key in shapes}
    names = [name for name, root in _TOWERS.items() if root in roots]
    if not names:
        raise ValueError(
            f"{file}: names must begin with img/ or txt/ as in SigLIP of big_vision, got {_some(roots)}; use a SigLIP"
            " checkpoint"
        )
    stacks = [name for name in names if any(k.startswith(f"{_BLOCKS[name]}/") for k in shapes)]
    with naming(file):
        config = config_from_dict(comment) if describes_a_model(comment) else _config(shapes, names)
    if "llm" in roots:
        tensors = {k: t for k, t in tensors.items() if not k.removeprefix(prefix).startswith(_OTHERS)}
    names = (f"{prefix}txt/{name}" for name in ("Embed_0/embedding", "head/kernel", "head/bias"))
    tensors = with_text_head(_without_stray(tensors, prefix), *names)
    layout = {"prefix": prefix, "stacked": stacks}
    return Contents(file, "big_vision", config, architecture_of(config), tensors, layout)


def subtree(contents: Contents, root: str) -> Contents:
    """Returns the contents of one tower of a file, as in "file.npz:img".

    Args:
      contents: headers of the file.
      root: name of the tower in the file: "img" or "txt".

    Raises:
      ValueError: if the file has no such tower.
    """
    names = {root: name for name, root in _TOWERS.items()}
    prefix = contents.layout["prefix"]
    tensors = {key: t for key, t in contents.tensors.items() if key.startswith(f"{prefix}{root}/")}
    if root not in names or not tensors:
        raise ValueError(f"{contents.path}: the subtree must be :img or :txt and in the file, got :{root}")
    config = getattr(contents.config, f"{names[root].removesuffix('_model')}_config", contents.config)
    return dataclasses.replace(contents, config=config, architecture=architecture_of(config), tensors=tensors)


def _some(names: set[str]) -> str:
    return shown(sorted(names)[:4]) if names else "nothing"


def _without_stray(tensors: dict[str, StoredTensor], prefix: str) -> dict[str, StoredTensor]:
    """Adds the second position table of some old files to the first, as big_vision does."""
    stray, table = tensors.pop(prefix + _STRAY, None), tensors.get(f"{prefix}txt/pos_embedding")
    if stray is not None and table is not None and stray.shape == table.shape:
        both = dataclasses.replace(table, view=lambda: table.view() + stray.view())
        tensors[f"{prefix}txt/pos_embedding"] = both
    return tensors


def _config(shapes: Mapping[str, Shape], names: list[str]) -> Config:
    """Returns the configuration that follows from the shapes.

    Raises:
      ValueError: if they are not those of SigLIP.
    """
    towers: dict[str, dict[str, Any]] = {}
    try:
        if VISION in names:
            towers["vision_config"] = _vision(shapes)
        if TEXT in names:
            towers["text_config"] = _text(shapes)
    except KeyError as error:
        raise ValueError(f"the names must be those of SigLIP of big_vision, got none of {error}") from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"the shapes must be those of SigLIP of big_vision, got others ({reason(error)})") from error
    family = "siglip2" if "num_patches" in towers.get("vision_config", ()) else "siglip"
    if len(towers) == 2:
        return CONFIGS[family].from_dict(towers)
    tower = next(iter(towers.values()))
    return CONFIGS[f"{family}_{names[0]}"].from_dict(tower)


def _encoder(shapes: Mapping[str, Shape], at: str) -> dict[str, int]:
    names = ("MultiHeadDotProductAttention_0/query/kernel", "MlpBlock_0/Dense_0/kernel")
    if (stack := shapes.get(f"{at}/{names[0]}")) is not None:
        depth, width, heads, _ = stack
        mlp = shapes[f"{at}/{names[1]}"][2]
    else:
        width, heads, _ = shapes[f"{at}_0/{names[0]}"]
        mlp = shapes[f"{at}_0/{names[1]}"][1]
        depth = len({m[0] for key in shapes if (m := re.match(rf"{at}_\d+(?=/)", key))})
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
    }


def _text(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    encoder = _encoder(shapes, _BLOCKS[TEXT])
    return encoder | {
        "vocab_size": shapes["txt/Embed_0/embedding"][0],
        "max_position_embeddings": shapes["txt/pos_embedding"][1],
        "projection_size": shapes.get("txt/head/kernel", (0, encoder["hidden_size"]))[1],
    }


def _vision(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    kernel, positions = shapes["img/embedding/kernel"], shapes["img/pos_embedding"]
    found = _encoder(shapes, _BLOCKS[VISION]) | {"vision_use_head": "img/MAPHead_0/probe" in shapes}
    if len(kernel) == 2:  # NaFlex; released with three channels only
        return found | {"num_patches": positions[0] * positions[1], "patch_size": math.isqrt(kernel[0] // 3)}
    patch, channels, side = kernel[0], kernel[2], math.isqrt(positions[1])
    size = _IMAGE_SIZES.get((patch, positions[1]), side * patch)
    return found | {"num_channels": channels, "patch_size": patch, "image_size": size}


def write(path: Path, checkpoint: Checkpoint, stacked: Sequence[str] | bool = False) -> None:
    """Writes an .npz file, under a temporary name until it is complete.

    Args:
      path: file to write, with the suffix .npz.
      checkpoint: configuration and parameters to write.
      stacked: towers ("text_model", "vision_model") whose layers are stacked, as with big_vision's `scan=True`; True:
        all towers; False: as in the file that the checkpoint was read from, or none.

    Raises:
      ValueError: if the format has no name for a parameter, or the parameters are not those of the configuration.
    """
    if path.suffix != ".npz":
        raise ValueError(f"{path}: the destination must be an .npz file for big_vision, got suffix {path.suffix!r}")
    layout = layout_of(checkpoint, stacked)
    rows = table(checkpoint.config, checkpoint.architecture, layout)
    params = checkpoint.params if layout["text_head"] else without_text_head(checkpoint.params)
    tensors = new_tensors(f"the tree of parameters (as {checkpoint.architecture})", rows, params)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        write_npz(aside, tensors, json.dumps(checkpoint.config.to_dict()))


def layout_of(checkpoint: Checkpoint, stacked: Sequence[str] | bool = False) -> dict[str, Any]:
    """Returns the layout that `write` chooses: that of the source file, without an identity text head."""
    layout = dict(checkpoint.layout) if checkpoint.format == "big_vision" else {}
    if stacked is not False:
        layout["stacked"] = [tower for tower in _TOWERS if tower in (checkpoint.params if stacked is True else stacked)]
    return layout | {"text_head": not is_identity(checkpoint.params.get("text_model", {}).get("head"))}


def hub_files(names: frozenset[str]) -> list[str]:
    """Returns the .npz files among the files of a repository."""
    return sorted(name for name in names if name.endswith(".npz"))


FORMAT = Format(
    name="big_vision",
    files="one .npz of big_vision",
    recognises=recognises,
    read_contents=read_contents,
    table=table,
    write=write,
    layout=layout_of,
    write_options=("stacked",),
    subtree=subtree,
    hub_files=hub_files,
    suffix=".npz",
)
