"""Adapters as PEFT 0.21 saves them, written without PEFT, and the weights they stand for in float64.

The names of the tensors and the entries of `adapter_config.json` are those of `PeftModel.save_pretrained`; the sums
are those of `merge_and_unload`, with which both were compared by hand.
"""

import json

import numpy as np
import safetensors.numpy

DEFAULTS = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "auto_mapping": {
        "base_model_class": "SiglipModel",
        "parent_library": "transformers.models.siglip.modeling_siglip",
    },
    "base_model_name_or_path": None,
    "bias": "none",
    "eva_config": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.05,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 4,
    "rank_pattern": {},
    "revision": None,
    "target_modules": [],
    "target_parameters": None,
    "task_type": None,
    "trainable_token_indices": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


def addition(random, shape, rank, embedding=False):
    """Random factors of a tensor's addition by PEFT's names of them."""
    if embedding:
        return {
            "lora_embedding_A": random.standard_normal((rank, shape[0])).astype(np.float32),
            "lora_embedding_B": random.standard_normal((shape[1], rank)).astype(np.float32),
        }
    rows, *columns = shape
    ones = [1] * (len(columns) - 1)
    return {
        "lora_A.weight": random.standard_normal((rank, *columns)).astype(np.float32),
        "lora_B.weight": random.standard_normal((rows, rank, *ones)).astype(np.float32),
    }


def product(parts, shape):
    """The product of the factors of an addition in float64."""
    a, b = (np.float64(x) for x in parts.values())
    if "lora_embedding_A" in parts:
        return (b @ a).T
    return (b.reshape(len(b), -1) @ a.reshape(len(a), -1)).reshape(shape)


def write(directory, tensors, **config):
    """Writes an adapter of tensors by their names below `base_model.model.`."""
    directory.mkdir(parents=True, exist_ok=True)
    named = {f"base_model.model.{name}": np.ascontiguousarray(x) for name, x in tensors.items()}
    safetensors.numpy.save_file(named, directory / "adapter_model.safetensors", {"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps(DEFAULTS | config, indent=2, sort_keys=True))
    return directory


def inject(tensors, adapter, saved=()):
    """The state dict of a model with an adapter in it: names with `base_layer`, and those of the adapter "default".

    Args:
      tensors: state dict of the model.
      adapter: tensors of the adapter by name; `saved` are those of modules that it replaces.
      saved: names of the modules that are saved whole.
    """
    layers = {name.partition(".lora_")[0] for name in adapter if ".lora_" in name}
    state = {}
    for name, x in tensors.items():
        module, _, leaf = name.rpartition(".")
        if module in layers:
            name = f"{module}.base_layer.{leaf}"
        elif module in saved:
            name = f"{module}.original_module.{leaf}"
        state[name] = x
    for name, x in adapter.items():
        module, _, leaf = name.rpartition(".")
        if module in saved:
            name = f"{module}.modules_to_save.default.{leaf}"
        elif leaf == "lora_magnitude_vector":
            name = f"{name}.default.weight"
        else:
            name = f"{name}.default" if leaf.startswith("lora_") else f"{module}.default.{leaf}"
        state[name] = x
    return {f"base_model.model.{name}": np.ascontiguousarray(x) for name, x in state.items()}
