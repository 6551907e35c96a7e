"""Description of a checkpoint, from the headers of its files or from the registry of released checkpoints."""

import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

from siglip_jax._files import folder_of
from siglip_jax._hub import PROCESSOR_FILES, TOKENIZER_FILES
from siglip_jax.assets import BUNDLED_MODEL
from siglip_jax.checkpoints.hub import resolve
from siglip_jax.checkpoints.keymap import architecture_of, key_table
from siglip_jax.checkpoints.read import check_names, read_contents, read_scalars, rows_of
from siglip_jax.configs.configuration import Config, SiglipConfig
from siglip_jax.configs.towers import towers_of
from siglip_jax.configs.variants import NAMES, VARIANTS, Variant


def describe(name_or_path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Describes a checkpoint without reading its weights.

    A released checkpoint that is not in the cache is described from the registry; nothing is fetched for it.

    Args:
      name_or_path: local directory or file, or a Hub name; a file of big_vision may be followed by one of its subtrees,
        as in "file.npz:img". None: the bundled model.

    Returns:
      A dictionary that JSON can hold: `model`, `path`, `format`, `quantization`, `part_of` (`model_type` of the larger
      model whose image tower this is), `architecture`, the sizes of `vision` and `text` (None for an absent tower),
      numbers of `parameters` by tower and in total, `stored_as` (numbers of tensors by dtype), `bytes`, `weight_files`,
      `temperature`, `bias`, `processor_files`, `notes` (sentences on what reading changes, such as a prefix of the
      names), and `variant`, the released checkpoint of the same sizes. Entries that only the files can determine are
      None for a checkpoint described from the registry.

    Raises:
      FileNotFoundError: if the checkpoint does not exist.
      ValueError: if it is not a SigLIP checkpoint or is damaged, or its tensors are not those of its configuration.

    Example:
      >>> facts = describe()
      >>> facts["format"], facts["vision"]["width"]
      ('huggingface', 192)
    """
    return facts_and_config(name_or_path)[0]


def facts_and_config(name_or_path: str | os.PathLike[str] | None) -> tuple[dict[str, Any], Config]:
    """Returns the description of a checkpoint, as `describe` does, and its configuration."""
    if name_or_path is None:
        return _of_files(BUNDLED_MODEL, "the bundled model")
    name = os.fspath(name_or_path)
    variant = None if Path(name).exists() else NAMES.get(name)
    if variant is None:
        return _of_files(name, name)
    try:
        path = resolve(variant.name, local_files_only=True)
    except (FileNotFoundError, ValueError):  # not in the cache, or huggingface_hub is not installed
        return _of_variant(variant)
    try:
        return _of_files(path, variant.name)
    except FileNotFoundError:  # the cache lacks the weights, as after loading only the tokenizer
        return _of_variant(variant)


def _of_files(given: str | Path, name: str) -> tuple[dict[str, Any], Config]:
    contents = read_contents(given, for_inference=True)
    check_names(contents)
    config, architecture = contents.config, contents.architecture
    scalars, stored = read_scalars(contents), list(contents.tensors.values())
    files = sorted({tensor.file for tensor in stored})
    counts = _counts({row.path: row.shape for row in rows_of(contents)})
    path = contents.path
    directory = folder_of(path)
    variant = released_variant(config, architecture)
    facts = {
        "model": name,
        "path": str(path),
        "format": contents.format,
        "quantization": contents.layout.get("scheme"),
        "part_of": contents.layout.get("part_of"),
        **_towers(config, architecture, counts),
        "parameters": counts,
        "stored_as": dict(Counter(tensor.dtype.name for tensor in stored)),
        "bytes": sum(_size(file) for file in files),
        "weight_files": [file.name for file in files],
        "temperature": math.exp(scalars["logit_scale"]) if scalars else None,
        "bias": scalars.get("logit_bias"),
        "processor_files": [f for f in (*TOKENIZER_FILES, *PROCESSOR_FILES) if (directory / f).is_file()],
        "notes": list(contents.notes),
        "variant": variant and variant.to_dict(),
    }
    return facts, config


def _of_variant(variant: Variant) -> tuple[dict[str, Any], Config]:
    config = SiglipConfig.from_variant(variant.name)
    architecture = architecture_of(config)
    counts = _expected_counts(config, architecture)
    unknown = (
        "quantization",
        "part_of",
        "stored_as",
        "bytes",
        "weight_files",
        "temperature",
        "bias",
        "processor_files",
    )
    facts = {
        "model": variant.name,
        "path": None,
        "format": "registry",
        **_towers(config, architecture, counts),
        "parameters": counts,
        **dict.fromkeys(unknown),
        "notes": [],
        "variant": variant.to_dict(),
    }
    return facts, config


def released_variant(config: Any, architecture: str) -> Variant | None:
    """Returns the released checkpoint of the same sizes as a configuration; None if there is none."""
    counts = _expected_counts(config, architecture)
    for variant in VARIANTS:
        if variant.parameters == counts["total"]:  # few remain, and no towers or classifiers
            released = SiglipConfig.from_variant(variant.name)
            if _towers(released, architecture, counts) == _towers(config, architecture, counts):
                return variant
    return None


def _expected_counts(config: Any, architecture: str) -> dict[str, int]:
    return _counts({row.path: row.shape for row in key_table(config, architecture)})


def _counts(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Returns the numbers of parameters by tower and in total."""
    counts = Counter()
    for path, shape in shapes.items():
        counts[path.split("/")[0] if "/" in path else "temperature_and_bias"] += math.prod(shape)
    return {**counts, "total": counts.total()}


def _towers(config: Any, architecture: str, counts: dict[str, int]) -> dict[str, Any]:
    vision, text = towers_of(config)
    return {
        "architecture": architecture,
        "vision": vision and _vision(vision),
        "text": text and _text(text) if "text_model" in counts else None,
    }


def _vision(config: Any) -> dict[str, int | None]:
    return {
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp_width": config.intermediate_size,
        "image_size": getattr(config, "image_size", None),  # None: any size (NaFlex)
        "patch_size": config.patch_size,
        "patches": config.num_patches,
    }


def _text(config: Any) -> dict[str, int]:
    return {
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp_width": config.intermediate_size,
        "length": config.max_position_embeddings,
        "vocabulary": config.vocab_size,
        "embedding_width": config.embedding_size,
    }


def _size(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )
