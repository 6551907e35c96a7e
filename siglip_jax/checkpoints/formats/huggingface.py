"""Hugging Face directories: `config.json` beside one `model.safetensors` or numbered shards with an index.

Reads and writes the files of `from_pretrained` and `save_pretrained` of `transformers`. Differences: missing,
unexpected and wrongly shaped tensors are errors, pickled weights are never opened, and no directory is left
half-written.
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siglip_jax._checks import shown
from siglip_jax._files import inside, naming, read_json, write_atomically, written_aside
from siglip_jax.checkpoints.checkpoint import Checkpoint, Contents
from siglip_jax.checkpoints.foreign import another_model, refuse_quantized
from siglip_jax.checkpoints.formats._format import Format
from siglip_jax.checkpoints.formats.released import released_config
from siglip_jax.checkpoints.formats.towers import find_towers, tower_config
from siglip_jax.checkpoints.keymap import CLASSIFIER, TEXT, VISION, architecture_of, key_table
from siglip_jax.checkpoints.prefix import without_prefix
from siglip_jax.checkpoints.safetensors_file import read_safetensors, write_safetensors
from siglip_jax.checkpoints.table import NewTensor, Row, StoredTensor, new_tensors
from siglip_jax.configs.config_json import CLASSIFIER_POOL, config_file, describes_a_model, read_any_config
from siglip_jax.configs.configuration import (
    CONFIGS,
    Config,
    SiglipConfig,
    TextConfig,
    config_from_dict,
    read_config,
)

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
QUANTIZED_WEIGHTS = "quantized.safetensors"  # of the format `quantized`; a directory holds either these or floats
MAX_SHARD_SIZE = 50_000_000_000  # bytes, the reference's default
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_INDEX = re.compile(r"model\.safetensors\.index(\.[\w-]+)?\.json")
# Buffers in files of old versions; they hold only 0, 1, 2, …
_IGNORED = re.compile(r"(text|vision)_model\.embeddings\.position_ids")


def recognises(path: Path) -> bool:
    """Returns whether a directory or file is of this format."""
    if path.is_file():
        return path.suffix == ".safetensors" or is_index(path.name)
    return (path / WEIGHTS).is_file() or (path / INDEX).is_file()


def weight_files(path: Path, tower_only: bool = False) -> list[Path]:
    """Returns the safetensors files of a checkpoint.

    Args:
      path: directory, index of shards, or one file, which is returned.
      tower_only: whether to leave out the shards without tensors of an image tower, if there is one.

    Raises:
      FileNotFoundError: if there are none, or the index names a missing file.
      ValueError: if the index is damaged or names files elsewhere.
    """
    index, path = (path, path.parent) if is_index(path.name) else (path / INDEX, path)
    if path.is_file():
        return [path]
    if index.name == INDEX and (path / WEIGHTS).is_file():
        return [inside(path / WEIGHTS)]
    names = shards(index, tower_only)
    for name in names:
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path / name}: no such file; the index beside it names it, get it again")
    return [inside(path / name) for name in names]


def shards(index: Path, tower_only: bool = False) -> list[str]:
    """Returns the names of the shards that an index lists.

    Args:
      index: the index.
      tower_only: whether to leave out the shards without tensors of an image tower, if there is one.

    Raises:
      ValueError: if the index is damaged or names files elsewhere.
    """
    weight_map = read_json(index, "it lists the shards").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: 'weight_map' must map tensor names to file names, got none; get it again")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index}: 'weight_map' must map tensor names to file names, got other values")
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index}: shards must be .safetensors files beside it, got {shown(name)}; get it again")
    towers = find_towers(weight_map) if tower_only else {}
    wanted = {weight_map[name] for names in towers.values() for name in names.values()}
    return sorted(wanted or set(weight_map.values()))


def needed_shards(index: Path) -> list[str]:
    """Returns the names of the shards that are read: of a larger model only those with tensors of the image tower.

    Args:
      index: the index; without a `config.json` beside it all shards are needed.

    Raises:
      ValueError: if the index or `config.json` is damaged.
    """
    file = index.parent / "config.json"
    return shards(index, tower_only=file.is_file() and is_larger_model(read_any_config(file)))


def is_index(name: str) -> bool:
    """Returns whether a name is that of an index of shards, perhaps of a variant.

    Args:
      name: name of the file.
    """
    return _INDEX.fullmatch(name) is not None


def is_larger_model(d: Mapping[str, Any]) -> bool:
    """Returns whether a `config.json` is not that of a model of SigLIP, so that it may be of one that contains a tower.

    Args:
      d: contents of the file.
    """
    return not describes_a_model(d) or d.get("model_type", SiglipConfig.model_type) not in CONFIGS


def read_contents(
    path: Path, *, config: Config | None = None, key_mapping: Mapping[str, str] | None = None
) -> Contents:
    """Reads the headers of a directory, or of a file with `config.json` beside it.

    From a model that contains an image tower of SigLIP, such as PaliGemma, only that tower is read.

    Args:
      path: the directory or file.
      config: configuration to use instead of `config.json`; None: that file.
      key_mapping: replacement of each regular expression in the names of tensors, applied in order; None: none.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is corrupt.
    """
    unknown = config is None and not config_file(path).is_file()
    d = {} if config is not None or unknown else read_any_config(config_file(path))
    larger = not isinstance(config, SiglipConfig | TextConfig | None) if config or unknown else is_larger_model(d)
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(path, tower_only=larger):
        tensors |= read_safetensors(file)
    tensors = _renamed(path, tensors, key_mapping or {})
    if unknown:
        config = released_config({key: tensor.shape for key, tensor in without_prefix(tensors)[0].items()})
        if config is None:
            raise FileNotFoundError(
                f"{config_file(path)}: no such file; weights whose sizes are not those of a released checkpoint need it"
                " beside them, or pass config= to from_pretrained"
            )
    if config is not None:
        return _with_config(path, config, tensors)
    names = tower_names(path, tensors) if larger else {}
    own_names = all(own == name for own, name in names.items())
    whole = own_names and {"logit_scale", "logit_bias"} <= set(tensors)  # a SigLIP model with another configuration
    if names and not whole and (describes_a_model(d) or not own_names):
        tower = _without_ignored({own: tensors[name] for own, name in names.items()})
        refuse_quantized(path, d, tower)
        with naming(config_file(path)):
            vision = tower_config(d, {own: t.shape for own, t in tower.items()})
        part_of = str(d.get("model_type") or d.get("type") or "a larger model")
        return Contents(path, "huggingface", vision, architecture_of(vision), tower, {"part_of": part_of})
    d = read_config(path)
    if larger:
        raise ValueError(f"{config_file(path)}: {another_model(d, tensors)}")
    refuse_quantized(path, d, tensors)
    with naming(config_file(path)):
        config = config_from_dict(d)
    tensors, notes = without_prefix(tensors)
    tensors = _without_ignored(tensors if isinstance(config, SiglipConfig) else _with_prefix(tensors, config))
    classes = d.get("architectures")
    declared = isinstance(classes, list) and str(*classes[:1]).endswith("ForImageClassification")
    classifies = declared or any(key.startswith(CLASSIFIER) for key in tensors)
    return Contents(path, "huggingface", config, architecture_of(config, classifies), tensors, {}, notes)


def _with_config(path: Path, config: Config, tensors: dict[str, StoredTensor]) -> Contents:
    """Returns the contents of files whose configuration is given; from a whole model, one tower can be read."""
    tensors, notes = without_prefix(tensors)
    if not isinstance(config, SiglipConfig):
        prefix = f"{TEXT if isinstance(config, TextConfig) else VISION}."
        names = {} if isinstance(config, TextConfig) else tower_names(path, tensors)
        tensors = {own: tensors[name] for own, name in names.items()} or tensors
        tensors = _with_prefix({k: t for k, t in tensors.items() if k.startswith(prefix)} or tensors, config)
    refuse_quantized(path, {}, tensors)
    classifies = any(key.startswith(CLASSIFIER) for key in tensors)
    found = architecture_of(config, classifies)
    return Contents(path, "huggingface", config, found, _without_ignored(tensors), {}, notes)


def _renamed(path: Path, tensors: dict[str, StoredTensor], key_mapping: Mapping[str, str]) -> dict[str, StoredTensor]:
    """Returns tensors under other names: the first match of each pattern is replaced, one pattern after the other.

    Raises:
      ValueError: if a pattern is no regular expression, or two tensors get one name.
    """
    renamed: dict[str, StoredTensor] = {}
    for key, tensor in tensors.items():
        new = key
        for pattern, replacement in key_mapping.items():
            try:
                new = re.sub(pattern, replacement, new, count=1)
            except re.error as error:
                found = f"{pattern!r}: {replacement!r} ({error})"
                raise ValueError(f"key_mapping must map regular expressions to replacements, got {found}") from error
        if new in renamed:
            raise ValueError(f"{path}: key_mapping must give each tensor its own name, got {new} twice; change it")
        renamed[new] = tensor
    return renamed


def tower_names(path: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Returns the names of the tensors of the only image tower by those of a `SiglipVisionModel`; {} if there is none.

    Args:
      path: the files, for errors.
      tensors: tensors of the files by name.

    Raises:
      ValueError: if there are several towers.
    """
    towers = find_towers(tensors)
    if len(towers) > 1:
        found = ", ".join(map(shown, sorted(towers)[:4]))
        raise ValueError(f"{path}: the model must have one image tower, got {len(towers)} ({found}); keep one of them")
    return next(iter(towers.values()), {})


def _with_prefix(tensors: dict[str, StoredTensor], config: Config) -> dict[str, StoredTensor]:
    """Returns the tensors of a tower under the names of a whole model, which `transformers` 5.6 and later leave out."""
    prefix = f"{TEXT if isinstance(config, TextConfig) else VISION}."
    if any(key.startswith(prefix) for key in tensors):
        return tensors
    return {prefix + key: t for key, t in tensors.items()}


def _without_ignored(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    return {key: t for key, t in tensors.items() if not _IGNORED.fullmatch(key)}


def table(config: Config, architecture: str, layout: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of all parameters in this format; `layout` is empty."""
    return key_table(config, architecture)


def write(directory: Path, checkpoint: Checkpoint, max_shard_size: int = MAX_SHARD_SIZE) -> None:
    """Writes `config.json` and the weights, under temporary names until all files are complete.

    Args:
      directory: directory to write to, created if it does not exist. A checkpoint in it is replaced; other files are
        kept.
      checkpoint: configuration and parameters to write.
      max_shard_size: largest size of a file in bytes; larger checkpoints are split into numbered shards with an index.

    Raises:
      ValueError: if the parameters are not those of the configuration.
    """
    tensors = to_tensors(checkpoint)
    if checkpoint.architecture.endswith("ForImageClassification") and checkpoint.config.extra.get(CLASSIFIER_POOL):
        logger.warning("transformers classifies by the mean of the patches, this classifier is on the pooling head")
    shards = _split(tensors, max_shard_size)
    names = [WEIGHTS] if len(shards) == 1 else [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in _count(shards)]
    config = _with_dtype(checkpoint, tensors)
    directory.mkdir(parents=True, exist_ok=True)
    # New weights of the same model in one file: renaming that file replaces the checkpoint atomically.
    at_once = names == [WEIGHTS] and not (directory / INDEX).exists() and _holds(directory / "config.json", config)
    with contextlib.ExitStack() as complete:
        for name, shard in zip(names, shards, strict=True):
            aside = complete.enter_context(written_aside(directory / name))
            write_safetensors(aside, shard, {"format": "pt"})
        # All weights are on disk. Until the last line the directory has no config.json, so it cannot pass for complete.
        for old in () if at_once else ("config.json", INDEX, QUANTIZED_WEIGHTS):
            (directory / old).unlink(missing_ok=True)
    if len(shards) > 1:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
        write_atomically(directory / INDEX, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
    for old in directory.glob("model*.safetensors"):
        if old.name not in names and (old.name == WEIGHTS or _SHARD.fullmatch(old.name)):
            os.unlink(old)
    if not at_once:
        config.save_pretrained(directory)


def _holds(file: Path, config: Config) -> bool:
    return file.is_file() and file.read_bytes() == config.to_json_string().encode()


def to_tensors(checkpoint: Checkpoint) -> dict[str, NewTensor]:
    """Returns the tensors to be written by name.

    Raises:
      ValueError: if the parameters are not those of the configuration.
    """
    what = f"the tree of parameters (as {checkpoint.architecture})"
    return new_tensors(what, key_table(checkpoint.config, checkpoint.architecture), checkpoint.params)


def hub_files(names: frozenset[str]) -> list[str]:
    """Returns the weights among the files of a repository: one file, else the index and shards, else all others."""
    found = sorted(name for name in names if name.endswith(".safetensors") and not name.startswith("open_clip"))
    if WEIGHTS in names:
        return [WEIGHTS]
    return [INDEX, *found] if INDEX in names else found


def with_variant(name: str, variant: str) -> str:
    """Returns the name of a file of a variant, as the reference makes it: "model.fp16.safetensors".

    Args:
      name: name of the file without a variant.
      variant: name of the variant, such as "fp16".
    """
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{variant}.{suffix}"


def variant_files(names: frozenset[str], variant: str) -> list[str]:
    """Returns the weights of a variant among the files of a repository, [] if it has none.

    Args:
      names: names of the files.
      variant: name of the variant, such as "fp16".
    """
    one, index = with_variant(WEIGHTS, variant), with_variant(INDEX, variant)
    if one in names:
        return [one]
    shards = sorted(name for name in names if re.fullmatch(rf"model\.{variant}-\d+-of-\d+\.safetensors", name))
    return [index, *shards] if index in names else []


def variant_path(directory: Path, variant: str) -> Path:
    """Returns the weights file of a variant, or the index of its shards.

    Args:
      directory: local directory of the checkpoint.
      variant: name of the variant, such as "fp16".

    Raises:
      FileNotFoundError: if the directory holds neither.
    """
    for name in (WEIGHTS, INDEX):
        if (file := directory / with_variant(name, variant)).is_file():
            return file
    raise FileNotFoundError(
        f"{directory}: the directory must hold {with_variant(WEIGHTS, variant)} for variant={variant!r}, got none;"
        " leave it out"
    )


def _count(items: list[Any]) -> range:
    return range(1, len(items) + 1)


def _split(tensors: Mapping[str, NewTensor], most: int) -> list[dict[str, NewTensor]]:
    shards: list[dict[str, NewTensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > most:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    return shards


def _with_dtype(checkpoint: Checkpoint, tensors: Mapping[str, NewTensor]) -> Config:
    """Returns the configuration with the dtype and the model class of the written parameters."""
    extra = dict(checkpoint.config.extra)
    field = "torch_dtype" if "torch_dtype" in extra else "dtype"
    # The scalars of the loss stay float32 in converted checkpoints, so the dtype of the first tensor is recorded.
    extra[field] = next(iter(tensors.values())).dtype.name
    return checkpoint.config.replace(extra=extra | {"architectures": [checkpoint.architecture]})


FORMAT = Format(
    name="huggingface",
    files=WEIGHTS,
    recognises=recognises,
    read_contents=read_contents,
    table=table,
    write=write,
    read_options=("config", "key_mapping"),
    write_options=("max_shard_size",),
    hub_files=hub_files,
)
