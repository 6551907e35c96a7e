"""Directories of open_clip: `open_clip_config.json` beside `open_clip_model.safetensors`, with a timm image tower.

Mirrors `CustomTextCLIP` with a `TimmModel`, as the SigLIP and SigLIP 2 configurations of open_clip build it. The
activation is that of open_clip's model, which for most SigLIP 1 towers is the exact GELU although they were trained
with the tanh approximation; a warning is logged. Directories written here also have a `config.json`, for the fields
that open_clip's configuration cannot hold, and the tokenizer of the checkpoint, which `open_clip.get_tokenizer` reads.
What only open_clip's configuration holds, such as the name of the tokenizer, is kept in the key `open_clip` of the
configuration through every format.
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
    TANH,
    depth,
    image_size_of,
    mlp_ratio,
    parsed,
    size_of,
    sizes_of,
    tower_row,
    tower_sizes,
)
from siglip_jax.checkpoints.formats.text_head import is_identity, with_text_head, without_text_head
from siglip_jax.checkpoints.keymap import architecture_of, key_table
from siglip_jax.checkpoints.prefix import without_prefix
from siglip_jax.checkpoints.safetensors_file import read_safetensors, write_safetensors
from siglip_jax.checkpoints.side_files import copy_tokenizer
from siglip_jax.checkpoints.table import LINEAR, SAME, Row, Transform, new_tensors
from siglip_jax.configs.configuration import (
    CONFIGS,
    Config,
    Siglip2Config,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipVisionConfig,
    VisionConfig,
    read_config,
)
from siglip_jax.configs.towers import tower_config
from siglip_jax.params import LAYER, Shape

logger = logging.getLogger(__name__)

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"

# As in the SigLIP and SigLIP 2 configurations of open_clip.
_PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
KEPT = "open_clip"  # key of a configuration with what only open_clip's configuration holds
# Keys of `model_cfg` that follow from the model; the others are kept. The image size of a NaFlex model does not follow.
_FOLLOWING = {
    "text_cfg": {
        *("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "no_causal_mask", "pool_type"),
        *("norm_kwargs", "proj_bias", "proj_type", "act_kwargs"),
    },
    "vision_cfg": {"timm_model_name"},
}
# open_clip looks for the files in the directory itself, whatever the name is, but only where there is a name.
_TOKENIZERS = {
    32_000: "timm/ViT-B-16-SigLIP",
    250_000: "timm/ViT-B-16-SigLIP-i18n-256",
    256_000: "timm/ViT-B-16-SigLIP2-256",
}
_OTHER_TOKENIZER = "local-dir"
_TEXT_HEAD = ("text.token_embedding.weight", "text.text_projection.weight", "text.text_projection.bias")

# Modules of the text tower in this package, and in open_clip: name, index of the part, number of parts.
_TEXT = {
    "embeddings/token_embedding": ("token_embedding", 0, 1),
    "final_layer_norm": ("ln_final", 0, 1),
    "head": ("text_projection", 0, 1),
    "layer_norm1": ("ln_1", 0, 1),
    "self_attn/q_proj": ("attn.in_proj_", 0, 3),
    "self_attn/k_proj": ("attn.in_proj_", 1, 3),
    "self_attn/v_proj": ("attn.in_proj_", 2, 3),
    "self_attn/out_proj": ("attn.out_proj", 0, 1),
    "layer_norm2": ("ln_2", 0, 1),
    "mlp/fc1": ("mlp.c_fc", 0, 1),
    "mlp/fc2": ("mlp.c_proj", 0, 1),
}
TRUNK, BLOCKS = "visual.trunk.", "text.transformer.resblocks."
_SCALAR = Transform(lambda x: x.reshape(1), lambda x: x.reshape(()))


def recognises(path: Path) -> bool:
    """Returns whether a directory or file is of this format."""
    directory, file = (path.parent, path) if path.is_file() else (path, path / huggingface.WEIGHTS)
    if not file.is_file():
        return (directory / WEIGHTS).is_file()
    return file.name == WEIGHTS or ((directory / CONFIG).is_file() and _wrapped(file))


def _wrapped(file: Path) -> bool:
    """Returns whether a file holds open_clip's model in a wrapper for `transformers`, as Marqo publishes it."""
    try:
        return any(f".{TRUNK}" in f".{name}" for name in read_safetensors(file))
    except (OSError, ValueError):
        return False


def table(config: Config, architecture: str, layout: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of all parameters in this format.

    Args:
      config: configuration of the whole model.
      architecture: name of the model class.
      layout: may hold `text_head` (False if the text head is omitted).

    Raises:
      ValueError: if the format has no name for a parameter.
    """
    rows = key_table(config, architecture)
    if not layout.get("text_head", True):
        rows = [row for row in rows if not row.path.startswith("text_model/head/")]
    return [_row(row, config) for row in rows]


def _row(row: Row, config: Config) -> Row:
    if row.path in ("logit_scale", "logit_bias"):
        return Row(row.path, row.path, row.shape, _SCALAR)
    name, _, rest = row.path.partition("/")
    if name == "vision_model":
        return tower_row(row, isinstance(tower_config(config, name), Siglip2VisionConfig), TRUNK)
    if name != "text_model":
        raise ValueError(
            f"a checkpoint for open_clip must be a model without a classifier, got {row.path}; convert the model"
            " without its classifier"
        )
    prefix = "text."
    if m := LAYER.fullmatch(row.path):
        prefix, rest = f"{BLOCKS}{m[2]}.", m[3]
    if rest == "embeddings/position_embedding/embedding":
        return Row(row.path, "text.positional_embedding", row.shape)
    module, _, leaf = rest.rpartition("/")
    end = "bias" if leaf == "bias" else "weight"
    key, part, parts = _TEXT[module]
    key = f"{key}{end}" if key.endswith("_") else f"{key}.{end}"
    return Row(row.path, prefix + key, row.shape, LINEAR if leaf == "kernel" else SAME, part, parts)


def read_contents(path: Path) -> Contents:
    """Reads the headers of a directory, or of the weights file in it.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is corrupt, or the model is not a SigLIP model.
    """
    directory = folder_of(path)
    name = WEIGHTS if path.is_file() or (path / WEIGHTS).is_file() else huggingface.WEIGHTS
    tensors, notes = without_prefix(read_safetensors(path if path.is_file() else inside(path / name)))
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    found = read_json(directory / "config.json", "") if (directory / "config.json").is_file() else {}
    own = all(isinstance(found.get(f"{tower}_config"), dict) for tower in ("text", "vision"))
    d = {} if own and not (directory / CONFIG).is_file() else read_json(directory / CONFIG, "it holds the sizes")
    if own:
        with naming(directory / "config.json"):
            config: SiglipConfig = _whole(read_config(directory))
    else:
        try:
            with naming(directory / CONFIG):
                cfg = d.get("model_cfg") or {}
                if other := cfg["text_cfg"].get("hf_model_name"):  # as in nllb-clip
                    notes += (f"the text tower is {shown(other)}, which open_clip reads; only the image tower is read",)
                    tower = {key: tensor for key, tensor in tensors.items() if key.startswith(TRUNK)}
                    vision = _vision_config(cfg["vision_cfg"], shapes)
                    return Contents(path, "open_clip", vision, architecture_of(vision), tower, {}, notes)
                config = _config(cfg, shapes)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{directory / CONFIG}: the model must be SigLIP of open_clip, got a missing or invalid field"
                f" ({reason(error)}); use a SigLIP checkpoint"
            ) from error
    if kept := _kept(d, config, directory):
        config = config.replace(extra={**config.extra, KEPT: kept})
    tensors = with_text_head(tensors, *_TEXT_HEAD)
    return Contents(path, "open_clip", config, architecture_of(config), tensors, {}, notes)


def _kept(d: dict[str, Any], config: SiglipConfig, directory: Path) -> dict[str, Any]:
    """Returns the part of open_clip's configuration that neither follows from the model nor is what `write` writes."""
    d = dict(d)
    if isinstance(d.get("model_cfg"), dict):
        d["model_cfg"] = {key: value for key, value in d["model_cfg"].items() if key != "embed_dim"}
        for name, following in _FOLLOWING.items():
            if isinstance(part := d["model_cfg"].get(name), dict):
                fixed = name == "vision_cfg" and not isinstance(config.vision_config, Siglip2VisionConfig)
                left_out = following | {"image_size"} if fixed else following
                d["model_cfg"][name] = {key: value for key, value in part.items() if key not in left_out}
    return difference(d, _whole_cfg(config, True, directory))


def _whole(d: Mapping[str, Any]) -> SiglipConfig:
    kind = d.get("model_type", SiglipConfig.model_type)
    return CONFIGS[kind if kind in (SiglipConfig.model_type, Siglip2Config.model_type) else "siglip"].from_dict(d)


def _config(d: Mapping[str, Any], shapes: Mapping[str, Shape]) -> SiglipConfig:
    """Returns the configuration of a `model_cfg` of open_clip, with sizes from the tensors."""
    text, vision = d["text_cfg"], d["vision_cfg"]
    name = vision.get("timm_model_name")
    tower = _parsed(vision)
    wanted = {"no_causal_mask": True, "pool_type": "last"}
    if tower is None or any(text.get(key) != value for key, value in wanted.items()):
        raise ValueError(
            f"the model must be SigLIP (a timm_model_name like vit_base_patch16_siglip_224, {wanted} in text_cfg), got"
            f" {shown(name)}, {shown({key: text.get(key) for key in wanted})}; use a SigLIP checkpoint, or open this"
            " one with open_clip"
        )
    exact_text = (text.get("act_kwargs") or {}).get("approximate") != "tanh"
    exact_image = tower.hidden_act == EXACT
    if exact_text or exact_image:
        towers = " and ".join(["text"] * exact_text + ["image"] * exact_image)
        logger.warning(
            "open_clip uses the exact GELU in the %s tower of this model; the configuration has it too", towers
        )
    width = shapes["text.token_embedding.weight"][1]
    text_config = {
        "vocab_size": shapes["text.token_embedding.weight"][0],
        "hidden_size": width,
        "intermediate_size": shapes[f"{BLOCKS}0.mlp.c_fc.weight"][0],
        "num_hidden_layers": depth(shapes, BLOCKS),
        "num_attention_heads": text["heads"],
        "max_position_embeddings": shapes["text.positional_embedding"][0],
        "hidden_act": EXACT if exact_text else TANH,
        "layer_norm_eps": (text.get("norm_kwargs") or {}).get("eps", 1e-5),
        "projection_size": shapes.get("text.text_projection.weight", (width,))[0],
    }
    vision = _vision_config(d["vision_cfg"], shapes)
    kind = Siglip2Config.model_type if isinstance(vision, Siglip2VisionConfig) else SiglipConfig.model_type
    return _whole({"model_type": kind, "text_config": text_config, "vision_config": vision})


def _vision_config(d: Mapping[str, Any], shapes: Mapping[str, Shape]) -> VisionConfig:
    """Returns the configuration of the image tower of a `vision_cfg` of open_clip, with sizes from the tensors."""
    tower = _parsed(d)
    if tower is None:
        raise ValueError(
            "the image tower must be SigLIP's (a timm_model_name like vit_base_patch16_siglip_224), got"
            f" {shown(d.get('timm_model_name'))}; use a SigLIP checkpoint"
        )
    fields = tower_sizes(shapes, TRUNK) | {
        "num_attention_heads": tower.heads,
        "hidden_act": tower.hidden_act,
        "patch_size": tower.patch_size,
    }
    if tower.image_size is None:  # NaFlex
        fields["patch_size"] = math.isqrt(shapes[f"{TRUNK}embeds.proj.weight"][1] // 3)
        return Siglip2VisionConfig.from_dict(fields)
    return SiglipVisionConfig.from_dict(fields | {"image_size": tower.image_size})


def _parsed(d: Mapping[str, Any]) -> Any:
    """Returns what the name of timm's model says of a tower; None if it is not one of SigLIP with a pooling head."""
    tower = parsed(d.get("timm_model_name"))
    return tower if tower is not None and tower.pools else None


def write(directory: Path, checkpoint: Checkpoint) -> None:
    """Writes the weights, the configuration of open_clip, and `config.json` for the fields that it cannot hold.

    The tokenizer in the directory that the checkpoint was read from is copied. Files are written under temporary names;
    `config.json` is renamed last.

    Args:
      directory: directory to write to, created if it does not exist.
      checkpoint: configuration and parameters of a whole model.

    Raises:
      ValueError: if the checkpoint is not a whole model, or the parameters are not those of the configuration.
    """
    config = checkpoint.config
    if not isinstance(config, SiglipConfig) or checkpoint.architecture.endswith("ForImageClassification"):
        raise ValueError(
            f"a checkpoint for open_clip must be a whole model without a classifier, got a {checkpoint.architecture}"
        )
    if config.vision_config.average_pooling:
        raise ValueError("average_pooling must be False for open_clip, got True; write the format huggingface")
    _warn_of_another_tower(config.vision_config)
    layout = layout_of(checkpoint)
    rows = table(config, checkpoint.architecture, layout)
    params = checkpoint.params if layout["text_head"] else without_text_head(checkpoint.params)
    tensors = new_tensors(f"the tree of parameters (as {checkpoint.architecture})", rows, params)
    directory.mkdir(parents=True, exist_ok=True)
    if checkpoint.directory is not None:
        copy_tokenizer(checkpoint.directory, directory)
    d = merged(_whole_cfg(config, layout["text_head"], directory), config.extra.get(KEPT, {}))
    with written_aside(directory / WEIGHTS) as aside:
        write_safetensors(aside, tensors, {"format": "pt"})
        # All weights are on disk. Until the last line the directory has no config.json, so it cannot pass for complete.
        for old in (directory / "config.json", directory / CONFIG):
            old.unlink(missing_ok=True)
    write_atomically(directory / CONFIG, (json.dumps(d, indent=2) + "\n").encode())
    config.replace(extra={k: v for k, v in config.extra.items() if k != KEPT}).save_pretrained(directory)


def _whole_cfg(config: SiglipConfig, text_head: bool, directory: Path) -> dict[str, Any]:
    """Returns open_clip's configuration of a model with the tokenizer in a directory."""
    cfg = _model_cfg(config, text_head)
    cfg["text_cfg"] |= _tokenizer_cfg(config.text_config.vocab_size, directory)
    return {"model_cfg": cfg, "preprocess_cfg": _PREPROCESS}


def _tokenizer_cfg(vocab_size: int, directory: Path) -> dict[str, Any]:
    """Returns the keys of `text_cfg` for the tokenizer: SigLIP 2's keeps punctuation, that of SigLIP 1 drops it."""
    own = [name for name in ("spiece.model", "tokenizer.json") if (directory / name).is_file()]
    second = own == ["tokenizer.json"] or (not own and vocab_size == 256_000)
    name = _TOKENIZERS.get(vocab_size, _OTHER_TOKENIZER)
    return {"hf_tokenizer_name": name, "tokenizer_kwargs": {"clean": "lower" if second else "canonicalize"}}


def layout_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the layout that `write` chooses: an identity text head is not written."""
    return {"text_head": not is_identity(checkpoint.params.get("text_model", {}).get("head"))}


def hub_files(names: frozenset[str]) -> list[str]:
    """Returns the weights among the files of a repository, unless those of `transformers` are there too."""
    return [WEIGHTS] if WEIGHTS in names and not names & {huggingface.WEIGHTS, huggingface.INDEX} else []


def _model_cfg(config: SiglipConfig, text_head: bool) -> dict[str, Any]:
    text = config.text_config
    cfg: dict[str, Any] = {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
        "mlp_ratio": mlp_ratio(text.intermediate_size, text.hidden_size),
        "no_causal_mask": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": text.layer_norm_eps},
        **({"proj_bias": True} if text_head else {"proj_type": "none"}),
        **({"act_kwargs": {"approximate": "tanh"}} if text.hidden_act == TANH else {}),
    }
    vision = {
        "image_size": image_size_of(config.vision_config),
        "timm_model_name": _timm_name(config.vision_config),
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }
    return {
        "embed_dim": text.embedding_size,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": vision,
        "text_cfg": cfg,
    }


def _timm_name(c: VisionConfig) -> str:
    size = size_of(c) or "custom"
    if isinstance(c, Siglip2VisionConfig):
        return f"naflexvit_{size}_patch{c.patch_size}_siglip"
    return f"vit_{size}_patch{c.patch_size}_siglip_{c.image_size}"


def _warn_of_another_tower(c: VisionConfig) -> None:
    """Logs a warning if timm's model of the written name is not the image tower."""
    name = _timm_name(c)
    tower = parsed(name)
    if tower is None:
        sizes = sizes_of(c)
        logger.warning("timm has no image tower of width, depth, MLP width, heads %s: open_clip cannot build it", sizes)
    elif tower.hidden_act != c.hidden_act:
        logger.warning("timm's %s uses another activation than %s of this checkpoint", name, c.hidden_act)


FORMAT = Format(
    name="open_clip",
    files=WEIGHTS,
    recognises=recognises,
    read_contents=read_contents,
    table=table,
    write=write,
    layout=layout_of,
    hub_files=hub_files,
)
