"""Directories of timm: `config.json` beside `model.safetensors`, an image tower of SigLIP with or without a classifier.

Mirrors timm's `VisionTransformer` and `NaFlexVit` as its models `vit_*_siglip_*`, `vit_*_siglip_gap_*` and
`naflexvit_*_siglip` build them. The activation is that of timm's model, which for most of SigLIP 1 is the exact GELU
although it was trained with the tanh approximation; a warning is logged. What is written here states in `model_args`
whatever differs from timm's model of that name, so that timm computes what this library does. What only timm's
configuration holds, such as its preprocessing, is kept in the key `timm` of the configuration through every format.
"""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siglip_jax._checks import reason, shown
from siglip_jax._files import folder_of, inside, naming, read_json, write_atomically, written_aside
from siglip_jax.checkpoints.checkpoint import Checkpoint, Contents
from siglip_jax.checkpoints.formats import huggingface
from siglip_jax.checkpoints.formats._format import Format
from siglip_jax.checkpoints.formats._kept import difference, merged
from siglip_jax.checkpoints.formats._timm_tower import (
    EXACT,
    SIZES,
    TANH,
    Name,
    image_size_of,
    mlp_ratio,
    parsed,
    size_of,
    sizes_of,
    tower_row,
    tower_sizes,
)
from siglip_jax.checkpoints.keymap import CLASSIFIER, VISION, architecture_of, key_table
from siglip_jax.checkpoints.prefix import without_prefix
from siglip_jax.checkpoints.safetensors_file import read_safetensors, write_safetensors
from siglip_jax.checkpoints.table import Row, new_tensors
from siglip_jax.configs.config_json import CLASSIFIER_POOL, describes_a_model
from siglip_jax.configs.configuration import (
    Config,
    Siglip2Config,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipVisionConfig,
    VisionConfig,
    read_config,
)
from siglip_jax.configs.towers import tower_config
from siglip_jax.params import Shape

logger = logging.getLogger(__name__)

WEIGHTS = huggingface.WEIGHTS
KEPT = "timm"  # key of a configuration with what only timm's configuration holds
_ACTIVATIONS = {"gelu_tanh": TANH, "gelu": EXACT, "quick_gelu": "quick_gelu", "relu": "relu", "silu": "silu"}
_NAMES_OF_ACTIVATIONS = {act: name for name, act in _ACTIVATIONS.items()} | {"gelu_new": "gelu_tanh", "swish": "silu"}
_EPS = 1e-6  # of every layer norm; `model_args` cannot say another one
# Image sizes of timm's models by size and patch size, and of those that have no pooling head only.
_MODELS = {
    ("base", 32): (256,),
    ("base", 16): (224, 256, 384, 512),
    ("large", 16): (256, 384, 512),
    ("so400m", 14): (224, 378, 384),
    ("so400m", 16): (256, 384, 512),
    ("giantopt", 16): (256, 384),
}
_ONLY_GAP = {("so400m", 14): (448, 896)}
# Arguments of a model that say what the tensors or the rest of the file say too, or that have no effect on inference.
_HARMLESS = {
    *(
        "in_chans",
        "img_size",
        "patch_size",
        "embed_dim",
        "depth",
        "mlp_ratio",
        "num_classes",
        "weight_init",
        "fix_init",
    ),
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
    *("pos_embed_grid_size", "dynamic_img_size", "strict_img_size"),
}
_NEEDED = {
    "class_token": (False,),
    "fc_norm": (False, None),
    "global_pool": ("map", "avg", "", None),
    "pos_embed_interp_mode": ("bilinear",),
    "qkv_bias": (True,),
}
# Keys of timm's configuration that follow from the model; the others are kept.
_FOLLOWING = {"architecture", "num_classes", "num_features", "global_pool", "label_names", "model_args"}
_FOLLOWING_PRETRAINED = {"architecture", "num_classes", "first_conv", "classifier", "custom_load", "fixed_input_size"}


def recognises(path: Path) -> bool:
    """Returns whether a directory or file is of this format."""
    directory = folder_of(path)
    if not (path.suffix == ".safetensors" if path.is_file() else (path / WEIGHTS).is_file()):
        return False
    try:
        d = read_json(directory / "config.json", "it names the model")
    except (OSError, ValueError):
        return False
    return not describes_a_model(d) and isinstance(d.get("architecture"), str)


def table(config: Config, architecture: str, layout: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of all parameters in this format; `layout` is empty.

    Raises:
      ValueError: if the model class has more than an image tower and a classifier.
    """
    if not architecture.endswith(("VisionModel", "ForImageClassification")):
        raise ValueError(
            f"a checkpoint for timm must be an image tower or an image classifier, got a {architecture}; write the"
            " image tower alone"
        )
    return [_row(row, config) for row in key_table(config, architecture)]


def _row(row: Row, config: Config) -> Row:
    if row.path.startswith(f"{CLASSIFIER}/"):
        return Row(row.path, row.key.replace(CLASSIFIER, "head"), row.shape, row.transform)
    return tower_row(row, isinstance(_tower(config), Siglip2VisionConfig))


def _tower(config: Config) -> VisionConfig:
    return tower_config(config, VISION)


def read_contents(path: Path) -> Contents:
    """Reads the headers of a directory, or of a file with `config.json` beside it.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is corrupt, or the model is not a SigLIP model.
    """
    directory = folder_of(path)
    tensors = read_safetensors(path if path.is_file() else inside(path / WEIGHTS))
    tensors, notes = without_prefix(tensors)
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    file = directory / "config.json"
    d = read_json(file, "it names the model")
    if "norm.weight" not in tensors:
        read_config(directory)  # raises: timm's configuration is beside tensors of another program
    with naming(file):
        try:
            config = _config(d, shapes)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"the model must be SigLIP of timm, got a missing or invalid field ({reason(error)}); use a SigLIP"
                " checkpoint"
            ) from error
    return Contents(path, "timm", config, architecture_of(config, isinstance(config, SiglipConfig)), tensors, {}, notes)


def _config(d: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Config:
    """Returns the configuration of a `config.json` of timm, with sizes from the tensors."""
    name = d["architecture"].partition(".")[0]
    tower = parsed(name)
    if tower is None:
        raise ValueError(
            "the model must be SigLIP (an architecture like vit_base_patch16_siglip_224), got timm's"
            f" {shown(d['architecture'])}; use a SigLIP checkpoint"
        )
    args = dict(d.get("model_args") or {})
    for key, value in args.items():
        if key not in {*_HARMLESS, "num_heads", "act_layer"} and value not in _NEEDED.get(key, ()):
            raise ValueError(f"model_args must be those of a SigLIP model, got {shown({key: value})}; timm computes it")
    act = _ACTIVATIONS.get(args["act_layer"]) if "act_layer" in args else tower.hidden_act
    if act is None:
        raise ValueError(f"act_layer must be one of {', '.join(_ACTIVATIONS)}, got {shown(args['act_layer'])}")
    if act == EXACT and "act_layer" not in args:
        logger.warning("timm uses the exact GELU in %s; the configuration has it too", name)
    trained = d.get("pretrained_cfg", d)
    fields = tower_sizes(shapes) | {"num_attention_heads": args.get("num_heads", tower.heads), "hidden_act": act}
    fields |= _image_sizes(tower, args.get("img_size"), trained.get("input_size"), shapes)
    config: Config = (SiglipVisionConfig if tower.image_size else Siglip2VisionConfig).from_dict(fields)
    if "head.weight" in shapes:
        config = _classifier(config, d, trained, shapes["head.weight"][0])
    if kept := _kept(d, config):
        config = config.replace(extra={**config.extra, KEPT: kept})
    return config


def _image_sizes(tower: Name, wanted: Any, size: Any, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Returns the fields of a configuration for channels, patches and images."""
    channels, *sides = [3, *[tower.image_size or 1] * 2] if size is None else _integers("input_size", size, 3)
    if tower.image_size is None:
        return {"patch_size": math.isqrt(shapes["embeds.proj.weight"][1] // channels), "num_channels": channels}
    if wanted is not None:
        sides = _integers("img_size", [wanted] * 2 if isinstance(wanted, int) else wanted, 2)
    if sides[0] != sides[1]:
        raise ValueError(f"input_size must be that of square images, got {shown(sides)}; use a model of square images")
    (_, channels, patch, _), (_, positions, _) = shapes["patch_embed.proj.weight"], shapes["pos_embed"]
    # With dynamic_img_size the images are of another size than that of the position table.
    fits = (sides[0] // patch) ** 2 == positions
    side = sides[0] if fits else patch * math.isqrt(positions)
    return {"patch_size": patch, "num_channels": channels, "image_size": side}


def _integers(name: str, value: Any, count: int) -> list[int]:
    if not isinstance(value, list) or len(value) != count or not all(type(x) is int and x > 0 for x in value):
        raise ValueError(f"{name} must be {count} positive integers, got {shown(value)}")
    return value


def _classifier(config: Config, d: Mapping[str, Any], trained: Mapping[str, Any], count: int) -> SiglipConfig:
    labels = d.get("label_names", trained.get("label_names", trained.get("labels")))
    if not isinstance(labels, list) or len(labels) != count:
        labels = [f"LABEL_{i}" for i in range(count)]
    tower = _tower(config)
    return (Siglip2Config if isinstance(tower, Siglip2VisionConfig) else SiglipConfig).from_dict(
        {
            "text_config": {"projection_size": tower.hidden_size},
            "vision_config": tower,
            "id2label": {i: str(label) for i, label in enumerate(labels)},
            **({CLASSIFIER_POOL: "map"} if tower.vision_use_head else {}),
        }
    )


def _kept(d: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Returns the part of timm's configuration that neither follows from the model nor is what `write` writes."""
    rest = {key: value for key, value in d.items() if key not in _FOLLOWING}
    if isinstance(trained := rest.get("pretrained_cfg"), dict):
        fixed = isinstance(_tower(config), SiglipVisionConfig)
        following = _FOLLOWING_PRETRAINED | ({"input_size"} if fixed else set())
        rest["pretrained_cfg"] = {key: value for key, value in trained.items() if key not in following}
    return difference(rest, _whole(config))


def write(directory: Path, checkpoint: Checkpoint) -> None:
    """Writes the weights and timm's configuration, under temporary names; `config.json` is renamed last.

    Args:
      directory: directory to write to, created if it does not exist.
      checkpoint: configuration and parameters of an image tower or an image classifier.

    Raises:
      ValueError: if the checkpoint is of another class, timm cannot compute it, or the parameters are not those of the
        configuration.
    """
    config, architecture = checkpoint.config, checkpoint.architecture
    rows = table(config, architecture, {})
    tower = _tower(config)
    on_head = isinstance(config, SiglipConfig) and config.extra.get(CLASSIFIER_POOL) == "map"
    if isinstance(config, SiglipConfig) and config.num_labels and tower.vision_use_head != on_head:
        raise ValueError(
            "a classifier for timm must pool as its tower does, got one on the mean of the patches of a tower with a"
            " pooling head; set vision_use_head=False and leave out the head's parameters"
        )
    if tower.layer_norm_eps != _EPS:
        raise ValueError(f"layer_norm_eps must be {_EPS} for timm, got {tower.layer_norm_eps}; timm has no other")
    what = f"the tree of parameters (as {architecture})"
    tensors = new_tensors(what, rows, checkpoint.params)
    directory.mkdir(parents=True, exist_ok=True)
    d = merged(_whole(config), config.extra.get(KEPT, {}))
    with written_aside(directory / WEIGHTS) as aside:
        write_safetensors(aside, tensors, {"format": "pt"})
        # All weights are on disk. Until the last line the directory has no config.json, so it cannot pass for complete.
        for old in ("config.json", huggingface.INDEX, huggingface.QUANTIZED_WEIGHTS):
            (directory / old).unlink(missing_ok=True)
    write_atomically(directory / "config.json", (json.dumps(d, indent=2) + "\n").encode())


def _whole(config: Config) -> dict[str, Any]:
    """Returns timm's configuration of a model."""
    tower = _tower(config)
    name, args = _name_and_args(tower)
    labels = config.id2label or {} if isinstance(config, SiglipConfig) else {}
    naflex = isinstance(tower, Siglip2VisionConfig)
    size = image_size_of(tower)
    named = [labels[i] for i in sorted(labels)]
    d: dict[str, Any] = {
        "architecture": name,
        "num_classes": len(labels),
        "num_features": tower.hidden_size,
        "global_pool": "map" if tower.vision_use_head else "avg",
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [tower.num_channels, size, size],
            "fixed_input_size": not naflex,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash",  # as SigLIP is trained, and as its processor does
            "mean": [0.5] * tower.num_channels,
            "std": [0.5] * tower.num_channels,
            "num_classes": len(labels),
            "first_conv": "embeds.proj" if naflex else "patch_embed.proj",
            "classifier": "head",
        },
    }
    if named != [f"LABEL_{i}" for i in range(len(named))]:
        d["label_names"] = named
    return d | {"model_args": args} if args else d


def _name_and_args(c: VisionConfig) -> tuple[str, dict[str, Any]]:
    """Returns the name of timm's model for a tower, and the arguments with which it is that tower."""
    size = size_of(c) or "base"
    if isinstance(c, Siglip2VisionConfig):
        side = math.isqrt(c.num_patches)
        name = f"naflexvit_{size if size in ('base', 'so400m') else 'base'}_patch16_siglip"
        args: dict[str, Any] = {} if side == 16 else {"pos_embed_grid_size": [side, side]}
        if not c.vision_use_head:
            args |= {"global_pool": "avg", "fc_norm": False}
    else:
        patch = c.patch_size if (size, c.patch_size) in _MODELS else 16
        known = _MODELS[size, patch] + (() if c.vision_use_head else _ONLY_GAP.get((size, patch), ()))
        image = c.image_size if c.image_size in known else known[0]
        name, args = f"vit_{size}_patch{patch}_siglip_{'' if c.vision_use_head else 'gap_'}{image}", {}
    made = parsed(name)
    assert made is not None
    if sizes_of(c) != SIZES[made.size]:
        args |= {"embed_dim": c.hidden_size, "depth": c.num_hidden_layers, "num_heads": c.num_attention_heads}
        args["mlp_ratio"] = mlp_ratio(c.intermediate_size, c.hidden_size)
    if c.patch_size != made.patch_size:
        args["patch_size"] = c.patch_size
    if _NAMES_OF_ACTIVATIONS[c.hidden_act] != _NAMES_OF_ACTIVATIONS[made.hidden_act]:
        args["act_layer"] = _NAMES_OF_ACTIVATIONS[c.hidden_act]
    return name, args


FORMAT = Format(
    name="timm",
    files=f"{WEIGHTS} of timm",
    recognises=recognises,
    read_contents=read_contents,
    table=table,
    write=write,
)
