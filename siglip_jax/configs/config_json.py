"""Reading and validation of `config.json`, which is untrusted input."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siglip_jax._checks import shown
from siglip_jax._files import folder_of, read_json
from siglip_jax._hub import resolve

ACTIVATIONS = ("gelu_pytorch_tanh", "gelu_new", "gelu", "quick_gelu", "relu", "silu", "swish")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

# Key of `config.json` that `transformers` does not know: "map" where a classifier is on the pooling head, as in timm.
CLASSIFIER_POOL = "classifier_pool"

# No model is larger, and beyond these sizes even the list of its tensors is too long.
_MOST = {"num_hidden_layers": 4096, "patch_size": 4096, "num_channels": 4096, "vocab_size": 2**31}
_MOST_ELSE = 2**20
MOST_BYTES = 8 << 20  # of a config.json: names of 100,000 labels


def read_config(
    name_or_path: str | os.PathLike[str], revision: str | None = None, local_files_only: bool = False
) -> dict[str, Any]:
    """Returns the parsed `config.json` of a checkpoint, without validating its fields.

    Args:
      name_or_path: checkpoint directory, weights file with `config.json` beside it, or Hub name.
      revision: branch, tag or commit of a Hub repository; None: `main`.
      local_files_only: whether to use only local files and the cache, without a request to the Hub.

    Returns:
      The JSON object.

    Raises:
      FileNotFoundError: if there is no `config.json`.
      ValueError: if it is not a JSON object, its `model_type` is not a string, or it has neither that nor both towers.
    """
    file = config_file(resolve(name_or_path, revision=revision, local_files_only=local_files_only))
    d = read_any_config(file)
    if not describes_a_model(d):
        found = f"a configuration of timm's {shown(d['architecture'])}" if "architecture" in d else "neither"
        raise ValueError(
            f"{file}: the configuration must have a model_type, or a text_config and a vision_config, got {found}; use"
            " the config.json of a SigLIP checkpoint"
        )
    return d


def read_any_config(file: Path) -> dict[str, Any]:
    """Returns the parsed `config.json` of a model of any kind; a `model_type` of None is left out.

    Args:
      file: the file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not a JSON object, or its `model_type` is not a string.
    """
    d = read_json(file, "a checkpoint directory needs it beside its weights", MOST_BYTES)
    if d.get("model_type", "") is None:  # unset, as in the reference
        del d["model_type"]
    if not isinstance(d.get("model_type", ""), str):
        raise ValueError(f"{file}: model_type must be a string, got {shown(d['model_type'])}")
    return d


def config_file(path: Path) -> Path:
    """Returns the path of the `config.json` in a directory or beside a weights file; another JSON file is its own."""
    if path.suffix == ".json" and ".index." not in path.name and path.is_file():
        return path
    return folder_of(path) / "config.json"


def describes_a_model(d: Mapping[str, Any]) -> bool:
    """Returns whether the contents of a `config.json` name a model or describe both towers.

    Other programs write files of this name too, and every absent field has a default.

    Args:
      d: contents of the file.
    """
    return bool(d.get("model_type")) or all(isinstance(d.get(f"{t}_config"), Mapping) for t in ("text", "vision"))


def check_tower(config: Any, sizes: tuple[str, ...]) -> None:
    """Checks the values of a tower's configuration.

    Args:
      config: configuration of a tower.
      sizes: names of its integer fields besides those that all towers have.

    Raises:
      ValueError: if a field has an invalid value.
    """
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", *sizes):
        value = getattr(config, name)
        least = 0 if name == "num_hidden_layers" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {shown(value)}")
        if value > (most := _MOST.get(name, _MOST_ELSE)):
            raise ValueError(f"{name} must be at most {most}, got {shown(value)}")
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            "hidden_size must be divisible by num_attention_heads, got"
            f" hidden_size={config.hidden_size}, num_attention_heads={config.num_attention_heads}"
        )
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(f"hidden_act must be one of {ACTIVATIONS}, got {shown(config.hidden_act)}")
    for name, most in (("attention_dropout", 1.0), ("layer_norm_eps", float("inf"))):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < most:
            raise ValueError(f"{name} must be a number in [0, {most}), got {shown(value)}")


def labels(num_labels: int | None, id2label: Mapping[Any, str] | None) -> dict[int, str]:
    """Returns the name of each label by its index.

    Args:
      num_labels: number of labels; None: the length of `id2label`, or 2 where that is None too.
      id2label: name of each label by its index; None: "LABEL_0", "LABEL_1", ….

    Returns:
      `id2label` with integer keys, or the default names.

    Raises:
      ValueError: if the two contradict each other or have invalid values.
    """
    if id2label is None:
        num_labels = 2 if num_labels is None else num_labels
        if not isinstance(num_labels, int) or num_labels < 0:
            raise ValueError(f"num_labels must be an integer of at least 0, got {shown(num_labels)}")
        if num_labels > _MOST_ELSE:
            raise ValueError(f"num_labels must be at most {_MOST_ELSE}, got {num_labels}")
        id2label = {i: f"LABEL_{i}" for i in range(num_labels)}
    if not isinstance(id2label, Mapping) or not all(str(k).isdecimal() for k in id2label):
        raise ValueError(f"id2label must be a dict of names by integer index, got {shown(id2label)}")
    id2label = {int(k): v for k, v in id2label.items()}
    if num_labels is not None and num_labels != len(id2label):
        raise ValueError(
            f"num_labels must be the length of id2label, got num_labels={num_labels} and {len(id2label)} names; pass"
            " one of the two"
        )
    return id2label
