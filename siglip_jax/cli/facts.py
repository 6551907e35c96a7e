"""The facts about a checkpoint that `siglip-jax info` prints: from headers only, or from the registry."""

import importlib.metadata
import math
import platform
from collections import Counter
from pathlib import Path
from typing import Any

from siglip_jax.variants import NAMES, VARIANTS, Variant

SIDE_FILES = (
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
)


def describe(name_or_path: str | None) -> dict[str, Any]:
    """Returns the facts about a checkpoint on this disk, or about a released one from the registry.

    Raises:
      FileNotFoundError: if it is not there.
      ValueError: if it is not one of SigLIP or is damaged.
    """
    from siglip_jax.hub import resolve
    from siglip_jax.inference.loading import EMBEDDED_MODEL

    if name_or_path is None:
        return describe_files(resolve(EMBEDDED_MODEL), "the embedded model")
    variant = None if Path(name_or_path).exists() else NAMES.get(name_or_path)
    if variant is None:
        return describe_files(resolve(name_or_path), name_or_path)
    try:
        path = resolve(variant.name, local_files_only=True)
    except (FileNotFoundError, ValueError):  # not in the cache, or the library that keeps one is not installed
        return describe_variant(variant)
    try:
        return describe_files(path, variant.name)
    except FileNotFoundError:  # the cache has a part of it, as after loading the tokenizer only
        return describe_variant(variant)


def describe_files(path: Path, name: str) -> dict[str, Any]:
    """Returns what the configuration and the headers of the weights hold.

    Raises:
      FileNotFoundError: if one of the files is not there.
      ValueError: if it is not one of SigLIP or is damaged.
    """
    from siglip_jax.checkpoints import quantized
    from siglip_jax.checkpoints.keymap import key_table
    from siglip_jax.checkpoints.load import read_contents, read_scalars, rows_of

    is_quantized = quantized.recognises(path)
    contents = quantized.read_contents(path) if is_quantized else read_contents(path)
    config, architecture = contents.config, contents.architecture
    if is_quantized:
        rows, scalars = key_table(config, architecture), quantized.read_scalars(contents)
        stored = list(contents.tensors.values())
    else:
        rows, scalars = rows_of(contents), read_scalars(contents)
        stored = [contents.tensors[key] for key in {row.key: None for row in rows if row.key in contents.tensors}]
    files = sorted({tensor.file for tensor in stored})
    counts = _counts({row.path.replace("/", "."): row.shape for row in rows})
    path = contents.path
    directory = path if path.is_dir() else path.parent
    variant = released_variant(config, architecture)
    return {
        "model": name,
        "path": str(path),
        "format": contents.format,
        "quantization": contents.layout.get("scheme"),
        **_towers(config, architecture, counts),
        "parameters": counts,
        "stored_as": dict(Counter(tensor.dtype.name for tensor in stored)),
        "bytes": sum(_size(file) for file in files),
        "weight_files": [file.name for file in files],
        "temperature": math.exp(scalars["logit_scale"]) if scalars else None,
        "bias": scalars.get("logit_bias"),
        "processor_files": [file for file in SIDE_FILES if (directory / file).is_file()],
        "variant": variant and variant.to_dict(),
        "engine": _engine(config),
    }


def describe_variant(variant: Variant) -> dict[str, Any]:
    """Returns what the registry knows of a released checkpoint; what only its files hold is None."""
    from siglip_jax.checkpoints.keymap import architecture_of
    from siglip_jax.configuration import SiglipConfig

    config = SiglipConfig.from_variant(variant.name)
    architecture = architecture_of(config)
    counts = _expected_counts(config, architecture)
    unknown = ("quantization", "stored_as", "bytes", "weight_files", "temperature", "bias", "processor_files")
    return {
        "model": variant.name,
        "path": None,
        "format": "registry",
        **_towers(config, architecture, counts),
        "parameters": counts,
        **dict.fromkeys(unknown),
        "variant": variant.to_dict(),
        "engine": _engine(config),
    }


def _engine(config: Any) -> dict[str, str]:
    """Returns how `load` would run a model of both towers in float32 on this machine."""
    from siglip_jax.configuration import SiglipConfig
    from siglip_jax.inference.choices import choose

    return choose(config, "float32").facts() if isinstance(config, SiglipConfig) else {}


def released_variant(config: Any, architecture: str) -> Variant | None:
    """Returns the released checkpoint whose configuration has the sizes of this one."""
    from siglip_jax.configuration import SiglipConfig

    counts = _expected_counts(config, architecture)
    for variant in VARIANTS:
        if variant.parameters == counts["total"]:  # leaves a few, and leaves out towers and classifiers
            released = SiglipConfig.from_variant(variant.name)
            if _towers(released, architecture, counts) == _towers(config, architecture, counts):
                return variant
    return None


def _expected_counts(config: Any, architecture: str) -> dict[str, int]:
    from siglip_jax.checkpoints.keymap import key_table

    return _counts({row.path.replace("/", "."): row.shape for row in key_table(config, architecture)})


def _counts(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Returns the number of parameters by tower, and in total."""
    counts = Counter()
    for key, shape in shapes.items():
        counts[key.split(".")[0] if "." in key else "temperature_and_bias"] += math.prod(shape)
    return {**counts, "total": counts.total()}


def versions() -> dict[str, str]:
    """Returns the versions that matter in a bug report, and the devices."""
    import jax

    names = ("siglip_jax", "jax", "jaxlib", "flax", "numpy")
    found = {name: importlib.metadata.version(name) for name in names if _installed(name)}
    return {"python": platform.python_version(), **found, "devices": ", ".join(map(str, jax.devices()))}


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _towers(config: Any, architecture: str, counts: dict[str, int]) -> dict[str, Any]:
    vision = getattr(config, "vision_config", config if "Vision" in architecture else None)
    text = getattr(config, "text_config", config if "Text" in architecture else None)
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
        "image_size": getattr(config, "image_size", None),  # None: any size, as NaFlex takes them
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
