"""Hugging Face directories: `config.json` beside one `model.safetensors` or numbered shards with an index.

Reads and writes what `from_pretrained` and `save_pretrained` of `transformers` do. Differences: a missing, an
unexpected or a wrongly shaped tensor is an error, pickled weights are never opened, no directory is left half-written.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.keymap import (
    ARCHITECTURES,
    CLASSIFIER,
    LOGITS,
    TEXT,
    VISION,
    Config,
    Row,
    check_names_and_shapes,
    flatten,
    key_table,
    unflatten,
    unstack_layers,
)
from siglip_jax.configuration import SiglipConfig, SiglipTextConfig, SiglipVisionConfig, read_config
from siglip_jax.files import read_json, write_atomically, written_aside

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
MAX_SHARD_SIZE = 50_000_000_000  # bytes, the reference's default
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
# Buffers that files of old versions carry; they hold nothing but 0, 1, 2, …
_IGNORED = re.compile(r"(text|vision)_model\.embeddings\.position_ids")


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, from the header of its file alone."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # safetensors' name: F32, F16, BF16, …


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Opens a safetensors file lazily, as numpy.

    Raises:
      ValueError: if the file is truncated, corrupt or no safetensors file.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path}: expected a safetensors file, found a truncated or corrupt one ({error}); get it again"
        ) from error


def weight_files(path: Path) -> list[Path]:
    """Returns the safetensors files of a directory, or the one file that `path` is.

    Raises:
      FileNotFoundError: if there are none.
      ValueError: if there is only a pickle, or an index that names files elsewhere.
    """
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(f"{path}: expected a .safetensors file or a checkpoint directory, found another file")
        return [path]
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if (path / INDEX).is_file():
        weight_map = read_json(path / INDEX, "it lists the shards").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{path / INDEX}: expected a 'weight_map' of tensor names to file names, found none")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(f"{path / INDEX}: expected names of .safetensors files beside it, found {name!r}")
            if not (path / name).is_file():
                raise FileNotFoundError(f"{path / name}: no such file, but the index beside it names it; get it again")
        return [path / name for name in names]
    if list(path.glob("pytorch_model*.bin")):
        raise ValueError(
            f"{path}: found only pytorch_model.bin, a pickle, which is never opened; expected {WEIGHTS}: load it with"
            " transformers and save_pretrained it"
        )
    raise FileNotFoundError(f"{path}: expected {WEIGHTS} or {INDEX} in this directory, found neither")


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Returns every tensor of a checkpoint by name, reading headers only."""
    tensors = {}
    for file in weight_files(path):
        with open_safetensors(file) as f:
            for key in f.keys():  # noqa: SIM118 (not a dict)
                part = f.get_slice(key)
                tensors[key] = StoredTensor(file, tuple(part.get_shape()), part.get_dtype())
    return tensors


def read_architecture(path: Path, tensors: Mapping[str, StoredTensor]) -> tuple[Config, str]:
    """Returns the configuration beside the weights and the model class that the tensors make up."""
    d = read_config(path)
    if d.get("model_type") == SiglipTextConfig.model_type:
        return SiglipTextConfig.from_dict(d), "SiglipTextModel"
    if d.get("model_type") == SiglipVisionConfig.model_type:
        return SiglipVisionConfig.from_dict(d), "SiglipVisionModel"
    config = SiglipConfig.from_dict(d)
    declared = d.get("architectures") == ["SiglipForImageClassification"]
    classifies = declared or any(k.startswith(CLASSIFIER) for k in tensors)
    return config, "SiglipForImageClassification" if classifies else "SiglipModel"


def read_huggingface(path: Path, architecture: str | None = None) -> Checkpoint:
    """Reads a checkpoint as the model class it holds, or as `architecture`, one it contains.

    Args:
      path: a directory, or a safetensors file with its `config.json` beside it.
      architecture: a tower also loads from a whole model, a classifier also without its last layer, which is then left
        out of the parameters.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is corrupt, or tensors are missing, unexpected or of the wrong shape.
    """
    tensors = {k: t for k, t in stored_tensors(path).items() if not _IGNORED.fullmatch(k)}
    config, found = read_architecture(path, tensors)
    if architecture is not None and architecture != found:
        if not isinstance(config, SiglipConfig):
            raise ValueError(f"{path}: expected a checkpoint that {architecture} can load, found a {found}")
        tensors = {k: t for k, t in tensors.items() if _part(k) in (*ARCHITECTURES[architecture], None)}
        config = {"SiglipTextModel": config.text_config, "SiglipVisionModel": config.vision_config}.get(
            architecture, config
        )
    architecture = architecture or found
    rows = key_table(config, architecture)
    if architecture == "SiglipForImageClassification" and found != architecture:
        rows = [row for row in rows if not row.key.startswith(CLASSIFIER)]
    what = f"{path} (as {architecture})"
    check_names_and_shapes(what, {r.key: r.tensor_shape for r in rows}, {k: t.shape for k, t in tensors.items()})
    if wrong := [f"{k}: {t.dtype}" for k, t in tensors.items() if t.dtype not in FLOATS]:
        raise ValueError(f"{what}: expected tensors of one of {FLOATS}, found {', '.join(wrong[:4])}")
    return Checkpoint(config, _read_rows(rows, tensors), "huggingface", architecture)


def _part(key: str) -> str | None:
    return next((part for part in (TEXT, VISION, LOGITS, CLASSIFIER) if key.startswith(part)), None)


def _read_rows(rows: list[Row], tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    flat: dict[str, np.ndarray] = {}
    for file in {tensors[row.key].file for row in rows}:
        with open_safetensors(file) as f:
            for row in rows:
                if tensors[row.key].file != file:
                    continue
                size = tensors[row.key].shape[0] // row.parts
                piece = f.get_slice(row.key)[row.part * size : (row.part + 1) * size]
                flat[row.path] = row.transform.to_param(piece)
    return unflatten({row.path: flat[row.path] for row in rows})


def write_huggingface(directory: Path, checkpoint: Checkpoint, max_shard_size: int = MAX_SHARD_SIZE) -> None:
    """Writes `config.json` and the weights; files are written aside and renamed when all of them are complete.

    Args:
      directory: is made if need be; an older checkpoint in it is replaced, other files stay.
      max_shard_size: bytes; larger checkpoints are split into numbered shards with an index.

    Raises:
      ValueError: if the parameters are not those of the configuration.
    """
    tensors = to_tensors(checkpoint)
    shards = _split(tensors, max_shard_size)
    names = [WEIGHTS] if len(shards) == 1 else [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in _count(shards)]
    config = _with_dtype(checkpoint, tensors)
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as complete:
        for name, shard in zip(names, shards, strict=True):
            aside = complete.enter_context(written_aside(directory / name))
            # safetensors writes the buffer behind a transposed view as if it were in order: make it so.
            ordered = {key: np.ascontiguousarray(tensor) for key, tensor in shard.items()}
            safetensors.numpy.save_file(ordered, aside, metadata={"format": "pt"})
        # All is on disk. From here to the last line the directory has no configuration, so it cannot pass for whole.
        for old in (directory / "config.json", directory / INDEX):
            old.unlink(missing_ok=True)
    if len(shards) > 1:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
        write_atomically(directory / INDEX, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
    for old in directory.glob("model*.safetensors"):
        if old.name not in names and (old.name == WEIGHTS or _SHARD.fullmatch(old.name)):
            os.unlink(old)
    config.save_pretrained(directory)


def to_tensors(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Returns the tensors of the file, by name; views where that can be.

    Raises:
      ValueError: if the parameters are not those of the configuration.
    """
    if set(checkpoint.params) == {"params"}:
        raise ValueError("expected the parameters themselves, found {'params': …}; pass variables['params']")
    params = flatten(unstack_layers(checkpoint.params))
    rows = key_table(checkpoint.config, checkpoint.architecture)
    what = f"the tree of parameters (as {checkpoint.architecture})"
    check_names_and_shapes(what, {r.path: r.shape for r in rows}, {path: np.shape(p) for path, p in params.items()})
    pieces: dict[str, list[np.ndarray]] = {}
    for row in rows:
        pieces.setdefault(row.key, []).append(row.transform.to_tensor(np.asarray(params[row.path])))
    return {key: parts[0] if len(parts) == 1 else np.concatenate(parts) for key, parts in pieces.items()}


def _count(items: list[Any]) -> range:
    return range(1, len(items) + 1)


def _split(tensors: Mapping[str, np.ndarray], most: int) -> list[dict[str, np.ndarray]]:
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > most:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    return shards


def _with_dtype(checkpoint: Checkpoint, tensors: Mapping[str, np.ndarray]) -> Config:
    """Brings the type and the class of model that `config.json` states in line with what is written."""
    extra = dict(checkpoint.config.extra)
    field = "torch_dtype" if "torch_dtype" in extra else "dtype"
    # The scalars of the loss stay float32 in reduced checkpoints: the type of the first table speaks for the whole.
    extra[field] = next(iter(tensors.values())).dtype.name
    return checkpoint.config.replace(extra=extra | {"architectures": [checkpoint.architecture]})
