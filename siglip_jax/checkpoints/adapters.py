"""LoRA adapters of PEFT, merged into the checkpoint they were trained on as its tensors are read.

An adapter is a directory with `adapter_config.json` and `adapter_model.safetensors`, or it is injected into a
checkpoint, whose tensors then have names with `base_layer` and `lora_A`. Mirrors `merge_and_unload`: alpha, rank,
rsLoRA, patterns of alpha, biases, modules saved whole, embeddings, convolutions and DoRA. What changes the weights
in another way is refused. The sum is computed in float32 and rounded once.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from siglip_jax._checks import shown
from siglip_jax._files import folder_of, inside, naming, read_json
from siglip_jax.checkpoints.checkpoint import Contents
from siglip_jax.checkpoints.keymap import CLASSIFIER, TEXT, VISION, architecture_of
from siglip_jax.checkpoints.safetensors_file import read_safetensors
from siglip_jax.checkpoints.table import StoredTensor
from siglip_jax.configs.configuration import SiglipConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_LORA = re.compile(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.(.+))?")
_SAVED = re.compile(r"(.+)\.modules_to_save\.(\w+)\.(.+)")
# Entries of the configuration that are used here, or say nothing about what is merged.
_KNOWN = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "bias", "r"),
    *("inference_mode", "lora_alpha", "lora_dropout", "lora_bias", "target_modules", "exclude_modules"),
    *("modules_to_save", "fan_in_fan_out", "init_lora_weights", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "qalora_group_size", "megatron_core"),
    *("loftq_config", "eva_config", "runtime_config", "ensure_weight_tying"),
}
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # the others change the weights below the adapter
_ADVICE = "merge it with peft (merge_and_unload) and save the model"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter as its files hold it.

    Attributes:
      path: the directory.
      config: contents of `adapter_config.json`.
      tensors: tensors of the adapter by name.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def base(self) -> str | None:
        """Name or path of the checkpoint that the adapter was trained on; None if it does not say."""
        name = self.config.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    @property
    def revision(self) -> str | None:
        """Revision of that checkpoint; None: `main`."""
        revision = self.config.get("revision")
        return revision if isinstance(revision, str) else None


def is_adapter(path: Path) -> bool:
    """Returns whether a local path is the directory of an adapter, without the weights below it."""
    return path.is_dir() and (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read_adapter(path: Path) -> Adapter:
    """Reads the headers of an adapter.

    Args:
      path: the directory.

    Raises:
      ValueError: if a file is damaged.
    """
    return Adapter(path, read_json(path / CONFIG, "it holds the scale"), read_safetensors(inside(path / WEIGHTS)))


def injected(contents: Contents) -> tuple[Contents, Adapter] | None:
    """Takes an adapter out of a checkpoint that it was injected into.

    Args:
      contents: headers of a checkpoint.

    Returns:
      The checkpoint below the adapter, and the adapter; None if there is none.

    Raises:
      ValueError: if there is an adapter, but no configuration beside the checkpoint, which holds its scale.
    """
    parts = {key: t for key, t in contents.tensors.items() if _LORA.fullmatch(key) or _SAVED.fullmatch(key)}
    if not parts:
        return None
    directory = folder_of(contents.path)
    if not (directory / CONFIG).is_file():
        raise ValueError(
            f"{directory}: the checkpoint must have {CONFIG} beside it, which holds the scale of the adapter in it, got"
            f" none; put it there, or {_ADVICE}"
        )
    own = {_base_name(key): t for key, t in contents.tensors.items() if key not in parts}
    config = read_json(directory / CONFIG, "it holds the scale")
    return dataclasses.replace(contents, tensors=own), Adapter(directory, config, parts)


def _base_name(key: str) -> str:
    return key.replace(".base_layer.", ".").replace(".original_module.", ".")


def fits(contents: Contents, adapter: Adapter) -> bool:
    """Returns whether a checkpoint has a layer that an adapter adds to, by the name that the adapter has for it.

    Args:
      contents: headers of the checkpoint.
      adapter: the adapter.
    """
    with naming(adapter.path):
        layers, _ = _parts(adapter.tensors)
    return any(_found(_base_name(f"{layer}.weight"), contents, adapter.config) for layer in layers)


def merged(contents: Contents, adapter: Adapter) -> Contents:
    """Returns the headers of a checkpoint with an adapter merged; tensors are computed when they are read.

    Args:
      contents: headers of the checkpoint that the adapter was trained on.
      adapter: the adapter.

    Raises:
      ValueError: if the adapter is not LoRA, changes weights in another way, or does not fit the checkpoint.
    """
    with naming(adapter.path / CONFIG):
        _check(adapter.config)
        layers, saved = _parts(adapter.tensors)
        if adapter.config.get("use_dora") and not any("lora_magnitude_vector" in parts for parts in layers.values()):
            raise ValueError("use_dora must be False for an adapter without lora_magnitude_vector, got True")
        tensors = dict(contents.tensors)
        for key, tensor in saved.items():
            name = _found(key, contents, adapter.config) or _new_classifier(key)
            if name is None:
                raise ValueError(_not_there(key))
            tensors[name] = tensor
        for layer, parts in layers.items():
            for name, merge in _merges(layer, parts, contents, adapter.config):
                tensors[name] = merge(tensors[name])
    count = f"LoRA of {len(layers)} layers" if layers else "no LoRA"
    more = f", {len(saved)} tensors replaced" if saved else ""
    notes = (*contents.notes, f"adapter {adapter.path} merged: {count}{more}")
    return _of_class(dataclasses.replace(contents, tensors=tensors, notes=notes))


def _check(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ValueError(f"the adapter must be LoRA, got peft_type {shown(config.get('peft_type'))}; {_ADVICE}")
    start = config.get("init_lora_weights", True)
    if not any(start is known or start == known for known in _STARTS):
        raise ValueError(f"the adapter must leave the weights below it alone, got {shown(start)}; {_ADVICE}")
    for name, value in config.items():
        if name not in _KNOWN and value:
            raise ValueError(f"the adapter must be plain LoRA, got {shown({name: value})}; {_ADVICE}")


def _parts(tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, dict[str, StoredTensor]], dict[str, StoredTensor]]:
    """Returns the parts of each layer's addition by their kind, and the tensors that replace others."""
    layers: dict[str, dict[str, StoredTensor]] = {}
    saved: dict[str, StoredTensor] = {}
    adapters = set()
    for full, tensor in tensors.items():
        key = full.removeprefix("base_model.model.")
        if m := _LORA.fullmatch(key):
            *names, leaf = [part for part in (m[3] or "weight").split(".")]
            if leaf not in ("weight", "bias"):  # of an injected parameter that is no module
                names, leaf = [*names, leaf], "weight"
            adapters.add(".".join(names))
            kind = m[2] if leaf == "weight" else f"{m[2]}.bias"
            layers.setdefault(m[1], {})[kind] = tensor
        elif m := _SAVED.fullmatch(key):
            adapters.add(m[2])
            saved[f"{m[1]}.{m[3]}"] = tensor
        else:
            saved[_base_name(key)] = tensor
    if len(adapters) > 1:
        raise ValueError(f"the checkpoint must hold one adapter, got {shown(sorted(adapters))}; {_ADVICE}")
    return layers, saved


def _merges(layer: str, parts: Mapping[str, StoredTensor], contents: Contents, config: Mapping[str, Any]) -> list[Any]:
    """Returns the names of the tensors that a layer's addition changes, each with the function that changes it."""
    kinds = set(parts) - {"lora_magnitude_vector", "lora_B.bias"}
    embeds = kinds == {"lora_embedding_A", "lora_embedding_B"}
    if not embeds and kinds != {"lora_A", "lora_B"}:
        raise ValueError(f"{layer} must have lora_A and lora_B, got {shown(sorted(parts))}; get the adapter again")
    # torch's attention holds its output layer below itself, with the rank and the scale of the whole; PEFT adds its
    # product twice, in each forward pass as in merging (lora.MultiheadAttention.merge, as of 0.21).
    module, out = (layer.removesuffix(".base_layer.out_proj"), layer.endswith(".base_layer.out_proj"))
    own = _base_name(f"{module}.base_layer.out_proj.weight") if out else f"{module}.weight"
    name = _found(own, contents, config) or _found(f"{module}.in_proj_weight", contents, config)
    if name is None:
        raise ValueError(_not_there(layer))
    prefix = "lora_embedding_" if embeds else "lora_"
    a, b, magnitude = parts[f"{prefix}A"], parts[f"{prefix}B"], parts.get("lora_magnitude_vector")
    shape, rank = contents.tensors[name].shape, a.shape[0] if a.shape else 0
    rows, columns = (shape[0], math.prod(shape[1:])) if shape else (0, 0)
    wanted = ((rank, rows), (columns, rank)) if embeds else ((rank, columns), (rows, rank))
    found = tuple((t.shape[0], math.prod(t.shape[1:])) if len(t.shape) > 1 else t.shape for t in (a, b))
    many = columns if embeds else rows
    if not rank or found != wanted or (magnitude is not None and math.prod(magnitude.shape) != many):
        raise ValueError(f"the addition to {layer} must fit {name} of {shape}, got {a.shape} and {b.shape}; {_ADVICE}")
    scale = _scale(module, rank, config) * (2 if out else 1)

    def merge(tensor: StoredTensor) -> StoredTensor:
        def make() -> np.ndarray:
            product = _float(b).reshape(found[1]) @ _float(a).reshape(found[0])
            product *= np.float32(scale)
            weight = _float(tensor) + (product.T if embeds else product).reshape(shape)
            if magnitude is not None:
                flat = weight.reshape(rows, columns)
                axis = 0 if embeds else 1
                norms = np.sqrt(np.sum(np.square(flat, dtype=np.float64), axis=axis))
                factors = (_float(magnitude).reshape(-1) / norms).astype(np.float32)
                flat *= np.expand_dims(factors, axis)
            return weight.astype(tensor.dtype)

        return dataclasses.replace(tensor, view=make)

    if "lora_B.bias" not in parts:
        return [(name, merge)]
    shift, bias = parts["lora_B.bias"], name.removesuffix("weight") + "bias"
    if bias not in contents.tensors or shift.shape != contents.tensors[bias].shape:
        raise ValueError(f"the bias of the addition to {layer} must fit {bias}, got {shift.shape}; {_ADVICE}")

    def shifted(tensor: StoredTensor) -> StoredTensor:
        return dataclasses.replace(
            tensor, view=lambda: (_float(tensor) + np.float32(scale) * _float(shift)).astype(tensor.dtype)
        )

    return [(name, merge), (bias, shifted)]


def _float(tensor: StoredTensor) -> np.ndarray:
    return np.asarray(tensor.view()).astype(np.float32)


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    alpha = config.get("lora_alpha", 8)
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise ValueError(f"alpha_pattern must be numbers by pattern, got {shown(patterns)}")
    alpha = next((value for pattern, value in patterns.items() if _matches(pattern, module)), alpha)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise ValueError(f"lora_alpha must be a number, got {shown(alpha)}")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _matches(pattern: str, module: str) -> bool:
    """Returns whether a pattern of an untrusted file matches the end of a module's name, as PEFT matches them."""
    if len(pattern) > 300 or sum(pattern.count(c) for c in "*+{") > 3:  # more could take hours
        raise ValueError(f"alpha_pattern must have at most 3 repetitions in a pattern, got {shown(pattern)}; {_ADVICE}")
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error as error:
        raise ValueError(f"alpha_pattern must hold regular expressions, got {shown(pattern)}; {_ADVICE}") from error


def _found(name: str, contents: Contents, config: Mapping[str, Any]) -> str | None:
    """Returns the name of a tensor in a checkpoint: without the prefix of a wrapper, or with that of its tower."""
    parts = name.split(".")
    for i in range(max(1, len(parts) - 1)):
        if (own := ".".join(parts[i:])) in contents.tensors:
            return own
    towers = [tower for tower in (VISION, TEXT) if f"{tower}.{name}" in contents.tensors]
    if len(towers) > 1:  # both have such a layer: the class that the adapter was trained on says which one is meant
        mapping = config.get("auto_mapping")
        cls = str(mapping.get("base_model_class")) if isinstance(mapping, Mapping) else ""
        towers = [tower for tower, word in ((VISION, "Vision"), (VISION, "Image"), (TEXT, "Text")) if word in cls]
    return f"{towers[0]}.{name}" if len(towers) == 1 else None


def _new_classifier(key: str) -> str | None:
    """Returns the name of a tensor of a classifier that the checkpoint below lacks; None if the tensor is another."""
    module, _, leaf = key.rpartition(".")
    own = module == CLASSIFIER or module.endswith(f".{CLASSIFIER}")
    return f"{CLASSIFIER}.{leaf}" if own and leaf in ("weight", "bias") else None


def _not_there(name: str) -> str:
    shortened = shown(name)
    return f"the adapter must fit the checkpoint it is merged into, which lacks {shortened}; name another one as base"


def _of_class(contents: Contents) -> Contents:
    """Returns the contents as those of an image classifier, where an adapter brought the classifier."""
    config, weight = contents.config, contents.tensors.get(f"{CLASSIFIER}.weight")
    if (
        weight is None
        or not isinstance(config, SiglipConfig)
        or contents.architecture.endswith("ForImageClassification")
    ):
        return contents
    if config.num_labels != weight.shape[0]:
        config = config.replace(num_labels=weight.shape[0], id2label=None, label2id=None)
    kept = {key: t for key, t in contents.tensors.items() if key.startswith((f"{VISION}.", f"{CLASSIFIER}."))}
    return dataclasses.replace(
        contents, config=config, architecture=architecture_of(config, classifies=True), tensors=kept
    )
