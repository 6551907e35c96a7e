"""The low-rank additions of a run as an adapter of PEFT, for the checkpoint that the run started from.

A linear layer's addition keeps its two factors. The attention of the pooling head has its projections packed into one
tensor in torch, for which PEFT has no factors of their own: it is saved whole, and so is everything else that is not
as in the checkpoint, such as the temperature and a classifier.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from siglip_jax._files import write_atomically, written_aside
from siglip_jax.checkpoints.adapters import CONFIG, WEIGHTS
from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.formats.huggingface import to_tensors
from siglip_jax.checkpoints.keymap import key_table
from siglip_jax.checkpoints.read import read_checkpoint
from siglip_jax.checkpoints.safetensors_file import write_safetensors
from siglip_jax.checkpoints.table import NewTensor
from siglip_jax.params import flatten
from siglip_jax.training.prepare import Model
from siglip_jax.training.recipe import Recipe
from siglip_jax.training.saving import gathered, whole

logger = logging.getLogger(__name__)

_PACKED = "vision_model.head.attention"
_PREFIX = "base_model.model."


def save_adapter(
    directory: Path, recipe: Recipe, model: Model, name_or_path: str | os.PathLike[str], params: Mapping[str, Any]
) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors` of the trained low-rank additions.

    Nothing is written, and a warning is logged, where the model has another shape than the checkpoint, as after a
    change of the resolution. All processes must call it; the first one writes.

    Args:
      directory: directory to write; made if need be.
      recipe: recipe of the run.
      model: module of the run.
      name_or_path: checkpoint that the run started from.
      params: trained parameters; low-rank additions under "lora".
    """
    params = gathered(params)
    if jax.process_index():
        return
    config, architecture = model.module.config, type(model.module).__name__
    trained = to_tensors(Checkpoint(config, whole(recipe, params), "huggingface", architecture))
    base = to_tensors(read_checkpoint(name_or_path))
    if other := [key for key, tensor in trained.items() if key in base and base[key].shape != tensor.shape]:
        logger.warning("no adapter is written: %s of %s has another shape than here", other[0], name_or_path)
        return
    tensors = _factors(params["lora"], config, architecture)
    layers = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    modules: list[str] = []
    for key, tensor in trained.items():
        module, _, leaf = key.rpartition(".")
        if (module in layers and leaf == "weight") or (key in base and _equal(tensor, base[key])):
            continue
        if key.startswith(f"{_PACKED}."):
            module = _PACKED
        if module in layers:
            tensors[f"{module}.base_layer.{leaf}"] = tensor
        elif f"{module}.weight" in trained or module == _PACKED:
            modules += [] if module in modules else [module]
        else:  # not of a layer: the temperature, the bias and the probe
            tensors[key] = tensor
    tensors |= {key: tensor for key, tensor in trained.items() if key.startswith(tuple(f"{m}." for m in modules))}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).unlink(missing_ok=True)
    with written_aside(directory / WEIGHTS) as aside:
        write_safetensors(aside, {_PREFIX + key: tensor for key, tensor in tensors.items()}, {"format": "pt"})
    d = _config(recipe, architecture, name_or_path, layers, modules)
    write_atomically(directory / CONFIG, (json.dumps(d, indent=2, sort_keys=True) + "\n").encode())


def _factors(additions: Mapping[str, Any], config: Any, architecture: str) -> dict[str, NewTensor]:
    """Returns the factors of all layers but those of the packed attention, by PEFT's names without their prefix."""
    parts = flatten(additions)
    keys = {row.path: row.key for row in key_table(config, architecture)}
    tensors: dict[str, NewTensor] = {}
    for path in sorted(path.removesuffix("/a") for path in parts if path.endswith("/a")):
        key = keys[f"{path}/kernel"]
        if not key.startswith(f"{_PACKED}."):
            for ours, theirs in (("a", "lora_A"), ("b", "lora_B")):
                x = parts[f"{path}/{ours}"]
                tensors[f"{key.removesuffix('weight')}{theirs}.weight"] = NewTensor(
                    tuple(x.shape[::-1]), np.dtype(x.dtype), _transposed(x)
                )
    return tensors


def _transposed(x: Any) -> Callable[[], np.ndarray]:
    return lambda: np.ascontiguousarray(np.asarray(x).T)


def _equal(one: NewTensor, two: NewTensor) -> bool:
    return bool((np.asarray(one.make(), np.float32) == np.asarray(two.make(), np.float32)).all())


def _config(
    recipe: Recipe, architecture: str, name_or_path: str | os.PathLike[str], layers: list[str], modules: list[str]
) -> dict[str, Any]:
    path, alpha = Path(name_or_path), recipe.lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": {
            "base_model_class": architecture,
            "parent_library": "transformers.models.siglip.modeling_siglip",
        },
        "base_model_name_or_path": str(path.resolve()) if path.exists() else os.fspath(name_or_path),
        "revision": None,
        "inference_mode": True,
        "r": recipe.lora.rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": 0.0,
        "target_modules": layers,
        "modules_to_save": modules or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
