"""`config.json`, which is not to be trusted: reading it, and refusing values that no model has."""

import os
from collections.abc import Mapping
from typing import Any

from siglip_jax._files import read_json
from siglip_jax._hub import resolve

ACTIVATIONS = ("gelu_pytorch_tanh", "gelu_new", "gelu", "quick_gelu", "relu", "silu", "swish")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

# Beyond these sizes no model exists, and the mere list of its tensors is too long.
_MOST = {"num_hidden_layers": 4096, "patch_size": 4096, "num_channels": 4096, "vocab_size": 2**31}
_MOST_ELSE = 2**20


def read_config(
    name_or_path: str | os.PathLike[str], revision: str | None = None, local_files_only: bool = False
) -> dict[str, Any]:
    """Returns the raw `config.json` of a checkpoint directory, of the directory of a weights file, or of a Hub name.

    Raises:
      FileNotFoundError: if there is no `config.json`.
      ValueError: if it is not a JSON object, or its `model_type` is no string.
    """
    path = resolve(name_or_path, revision=revision, local_files_only=local_files_only)
    directory = path if path.is_dir() else path.parent
    d = read_json(directory / "config.json", "a checkpoint directory needs it beside its weights")
    if not isinstance(d.get("model_type", ""), str):
        raise ValueError(f"{directory / 'config.json'}: expected model_type to be a string, found {d['model_type']!r}")
    return d


def check_tower(config: Any, sizes: tuple[str, ...]) -> None:
    """Refuses a tower of impossible values; `sizes` names those beside the ones that all towers have.

    Raises:
      ValueError: with the field, what it may be, and what it is.
    """
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", *sizes):
        value = getattr(config, name)
        least = 0 if name == "num_hidden_layers" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        if value > (most := _MOST.get(name, _MOST_ELSE)):
            raise ValueError(f"{name} must be at most {most}, got {value}")
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            "hidden_size must be divisible by num_attention_heads, got"
            f" hidden_size={config.hidden_size}, num_attention_heads={config.num_attention_heads}"
        )
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(f"hidden_act must be one of {ACTIVATIONS}, got {config.hidden_act!r}")
    for name, most in (("attention_dropout", 1.0), ("layer_norm_eps", float("inf"))):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < most:
            raise ValueError(f"{name} must be a number in [0, {most}), got {value!r}")


def labels(num_labels: int | None, id2label: Mapping[Any, str] | None) -> dict[int, str]:
    """Returns the names of the labels by their number: `LABEL_0`, ... where only their number is given, 2 by default.

    Raises:
      ValueError: if the two contradict each other, or are no number and no names.
    """
    if id2label is None:
        num_labels = 2 if num_labels is None else num_labels
        if not isinstance(num_labels, int) or num_labels < 0:
            raise ValueError(f"num_labels must be 0 or more, got {num_labels!r}")
        if num_labels > _MOST_ELSE:
            raise ValueError(f"num_labels must be at most {_MOST_ELSE}, got {num_labels}")
        id2label = {i: f"LABEL_{i}" for i in range(num_labels)}
    if not isinstance(id2label, Mapping) or not all(str(k).isdecimal() for k in id2label):
        raise ValueError(f"id2label must map numbers to names, got {id2label!r}")
    id2label = {int(k): v for k, v in id2label.items()}
    if num_labels is not None and num_labels != len(id2label):
        raise ValueError(f"num_labels={num_labels} but id2label names {len(id2label)} labels; give one of them")
    return id2label
