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
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siglip_jax._checks import reason, shown
from siglip_jax._files import inside, naming, read_json, write_atomically, written_aside
from siglip_jax.checkpoints.checkpoint import Checkpoint, Contents
from siglip_jax.checkpoints.formats import huggingface
from siglip_jax.checkpoints.formats._format import Format
from siglip_jax.checkpoints.formats.text_head import is_identity, with_text_head, without_text_head
from siglip_jax.checkpoints.keymap import architecture_of, key_table
from siglip_jax.checkpoints.safetensors_file import read_safetensors, write_safetensors
from siglip_jax.checkpoints.side_files import copy_tokenizer
from siglip_jax.checkpoints.table import LINEAR, SAME, Row, Transform, new_tensors, reshaped
from siglip_jax.configs.config_json import describes_a_model
from siglip_jax.configs.configuration import (
    CONFIGS,
    Config,
    Siglip2Config,
    Siglip2VisionConfig,
    SiglipConfig,
    VisionConfig,
    read_config,
)
from siglip_jax.params import LAYER, Shape

logger = logging.getLogger(__name__)

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"

TANH, EXACT = "gelu_pytorch_tanh", "gelu"
# Width, depth, MLP width and heads of timm's models; the number of heads cannot be inferred from the shapes.
_SIZES = {
    "base": (768, 12, 3072, 12),
    "large": (1024, 24, 4096, 16),
    "so400m": (1152, 27, 4304, 16),
    "giantopt": (1536, 40, 6144, 16),
}
_TIMM = re.compile(rf"(?:vit_({'|'.join(_SIZES)})_patch(\d+)_siglip_(\d+)|naflexvit_(base|so400m)_patch16_siglip)")
# timm's models with the tanh approximation, with which all SigLIP models were trained; the others use the exact GELU.
_TANH_MODELS = re.compile(r"naflexvit|vit_(base_patch32|large_patch16_siglip_512|so400m_patch16|giantopt)")
_POSITIONS = {
    ("vision_model", False): "pos_embed",
    ("vision_model", True): "embeds.pos_embed",
    ("text_model", False): "positional_embedding",
    ("text_model", True): "positional_embedding",
}
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

# Modules in this package, and in open_clip: name, index of the part, number of parts.
_IMAGE = {
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
_TOWERS = {
    "vision_model": ("visual.trunk.", "blocks.", _IMAGE),
    "text_model": ("text.", "transformer.resblocks.", _TEXT),
}
_SCALAR = Transform(lambda x: x.reshape(1), lambda x: x.reshape(()))


def recognises(path: Path) -> bool:
    """Returns whether a directory or file is of this format."""
    if path.is_file():
        return path.name == WEIGHTS
    return (path / WEIGHTS).is_file() and not (path / huggingface.WEIGHTS).is_file()


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
    if name not in _TOWERS:
        raise ValueError(
            f"a checkpoint for open_clip must be a model without a classifier, got {row.path}; convert the model"
            " without its classifier"
        )
    prefix, blocks, modules = _TOWERS[name]
    if m := LAYER.fullmatch(row.path):
        prefix, rest = f"{prefix}{blocks}{m[2]}.", m[3]
    naflex = isinstance(getattr(config, "vision_config", config), Siglip2VisionConfig)
    if rest == "embeddings/position_embedding/embedding":
        return Row(row.path, prefix + _POSITIONS[name, naflex], row.shape, _positions(row.shape, name, naflex))
    if rest == "head/probe":
        return Row(row.path, prefix + "attn_pool.latent", row.shape)
    module, _, leaf = rest.rpartition("/")
    end = "bias" if leaf == "bias" else "weight"
    if module == "embeddings/patch_embedding":
        key = f"{'embeds' if naflex else 'patch_embed'}.proj.{end}"
        return Row(row.path, prefix + key, row.shape, row.transform)
    key, part, parts = modules[module]
    key = f"{key}{end}" if key.endswith("_") else f"{key}.{end}"
    return Row(row.path, prefix + key, row.shape, LINEAR if leaf == "kernel" else SAME, part, parts)


def _positions(shape: Shape, tower: str, naflex: bool) -> Transform:
    if tower == "text_model":
        return SAME
    side = math.isqrt(shape[0])
    return reshaped(shape, (1, side, side, shape[1]) if naflex else (1, *shape))


def read_contents(path: Path) -> Contents:
    """Reads the headers of a directory, or of the weights file in it.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is corrupt, or the model is not a SigLIP model.
    """
    directory = path.parent if path.is_file() else path
    file = inside(directory / WEIGHTS)
    tensors = read_safetensors(file)
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    own = (directory / "config.json").is_file() and describes_a_model(read_json(directory / "config.json", ""))
    d = {} if own and not (directory / CONFIG).is_file() else read_json(directory / CONFIG, "it holds the sizes")
    if own:
        with naming(directory / "config.json"):
            config: SiglipConfig = _whole(read_config(directory))
    else:
        try:
            with naming(directory / CONFIG):
                config = _config(d.get("model_cfg") or {}, shapes)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{directory / CONFIG}: the model must be SigLIP of open_clip, got a missing or invalid field"
                f" ({reason(error)}); use a SigLIP checkpoint"
            ) from error
    if kept := _kept(d, config, directory):
        config = config.replace(extra={**config.extra, KEPT: kept})
    return Contents(path, "open_clip", config, architecture_of(config), with_text_head(tensors, *_TEXT_HEAD), {})


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
    return _difference(d, _whole_cfg(config, True, directory))


def _difference(found: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries of a nested dict that another one has not, without empty dicts."""
    left = {}
    for key, value in found.items():
        if isinstance(value, dict) and isinstance(made.get(key), dict):
            value = _difference(value, made[key])
            if value:
                left[key] = value
        elif key not in made or value != made[key]:
            left[key] = value
    return left


def _merged(made: Any, kept: Any) -> Any:
    """Returns nested dicts with the entries of both; those of `kept` take precedence."""
    if not isinstance(made, dict):
        return kept
    if not isinstance(kept, dict):
        return made
    return {**made, **{key: _merged(made.get(key), value) for key, value in kept.items()}}


def _whole(d: Mapping[str, Any]) -> SiglipConfig:
    kind = d.get("model_type", SiglipConfig.model_type)
    return CONFIGS[kind if kind in (SiglipConfig.model_type, Siglip2Config.model_type) else "siglip"].from_dict(d)


def _config(d: Mapping[str, Any], shapes: Mapping[str, Shape]) -> SiglipConfig:
    """Returns the configuration of a `model_cfg` of open_clip, with sizes from the tensors."""
    text, vision = d["text_cfg"], d["vision_cfg"]
    name = str(vision.get("timm_model_name"))
    m = _TIMM.fullmatch(name)
    wanted = {"no_causal_mask": True, "pool_type": "last"}
    if not m or any(text.get(key) != value for key, value in wanted.items()):
        raise ValueError(
            f"the model must be SigLIP (a timm_model_name like vit_base_patch16_siglip_224, {wanted} in text_cfg), got"
            f" {shown(name)}, {shown({key: text.get(key) for key in wanted})}; use a SigLIP checkpoint"
        )
    exact_text = (text.get("act_kwargs") or {}).get("approximate") != "tanh"
    exact_image = not _TANH_MODELS.match(name)
    if exact_text or exact_image:
        towers = " and ".join(["text"] * exact_text + ["image"] * exact_image)
        logger.warning(
            "open_clip uses the exact GELU in the %s tower of this model; the configuration has it too", towers
        )
    width = shapes["text.token_embedding.weight"][1]
    trunk, blocks = "visual.trunk.", "text.transformer.resblocks."
    text_config = {
        "vocab_size": shapes["text.token_embedding.weight"][0],
        "hidden_size": width,
        "intermediate_size": shapes[f"{blocks}0.mlp.c_fc.weight"][0],
        "num_hidden_layers": _depth(shapes, blocks),
        "num_attention_heads": text["heads"],
        "max_position_embeddings": shapes["text.positional_embedding"][0],
        "hidden_act": EXACT if exact_text else TANH,
        "layer_norm_eps": (text.get("norm_kwargs") or {}).get("eps", 1e-5),
        "projection_size": shapes.get("text.text_projection.weight", (width,))[0],
    }
    vision_config = {
        "hidden_size": shapes[f"{trunk}norm.weight"][0],
        "intermediate_size": shapes[f"{trunk}blocks.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _depth(shapes, f"{trunk}blocks."),
        "num_attention_heads": _SIZES[m[1] or m[4]][3],
        "hidden_act": EXACT if exact_image else TANH,
    }
    if m[4]:  # NaFlex
        side = shapes[f"{trunk}embeds.pos_embed"][1]
        patch = math.isqrt(shapes[f"{trunk}embeds.proj.weight"][1] // 3)
        vision_config |= {"num_patches": side * side, "patch_size": patch}
        return _whole({"model_type": "siglip2", "text_config": text_config, "vision_config": vision_config})
    vision_config |= {"patch_size": int(m[2]), "image_size": int(m[3])}
    return _whole({"text_config": text_config, "vision_config": vision_config})


def _depth(shapes: Mapping[str, Shape], blocks: str) -> int:
    return len({key.removeprefix(blocks).partition(".")[0] for key in shapes if key.startswith(blocks)})


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
    _warn_of_another_tower(config.vision_config)
    layout = layout_of(checkpoint)
    rows = table(config, checkpoint.architecture, layout)
    params = checkpoint.params if layout["text_head"] else without_text_head(checkpoint.params)
    tensors = new_tensors(f"the tree of parameters (as {checkpoint.architecture})", rows, params)
    directory.mkdir(parents=True, exist_ok=True)
    if checkpoint.directory is not None:
        copy_tokenizer(checkpoint.directory, directory)
    d = _merged(_whole_cfg(config, layout["text_head"], directory), config.extra.get(KEPT, {}))
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
        "mlp_ratio": _mlp_ratio(text.intermediate_size, text.hidden_size),
        "no_causal_mask": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": text.layer_norm_eps},
        **({"proj_bias": True} if text_head else {"proj_type": "none"}),
        **({"act_kwargs": {"approximate": "tanh"}} if text.hidden_act == TANH else {}),
    }
    vision = {
        "image_size": _image_size(config.vision_config),
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


def _image_size(c: VisionConfig) -> int:
    """Returns the image size; for a NaFlex model that of a square with the patches of the position table."""
    return c.patch_size * math.isqrt(c.num_patches) if isinstance(c, Siglip2VisionConfig) else c.image_size


def _mlp_ratio(mlp: int, width: int) -> float:
    """Returns a ratio for which open_clip's `int(width * ratio)` equals the MLP width despite rounding."""
    ratio = mlp / width
    return ratio if int(width * ratio) == mlp else math.nextafter(ratio, math.inf)


def _timm_name(c: VisionConfig) -> str:
    size = next((name for name, sizes in _SIZES.items() if sizes == _timm_sizes(c)), "custom")
    if isinstance(c, Siglip2VisionConfig):
        return f"naflexvit_{size}_patch{c.patch_size}_siglip"
    return f"vit_{size}_patch{c.patch_size}_siglip_{c.image_size}"


def _timm_sizes(c: VisionConfig) -> tuple[int, ...]:
    return (c.hidden_size, c.num_hidden_layers, c.intermediate_size, c.num_attention_heads)


def _warn_of_another_tower(c: VisionConfig) -> None:
    """Logs a warning if timm's model of the written name is not the image tower."""
    name, sizes = _timm_name(c), _timm_sizes(c)
    if sizes not in _SIZES.values():
        logger.warning("timm has no image tower of width, depth, MLP width, heads %s: open_clip cannot build it", sizes)
    elif bool(_TANH_MODELS.match(name)) != (c.hidden_act == TANH):
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
