"""Says what a checkpoint is, reading its headers only: towers, sizes, parameters, temperature and bias, files.

Without a name it describes the embedded model, and the versions and devices in use.
"""

import argparse
import importlib.metadata
import json
import math
import platform
import sys
from collections import Counter
from typing import Any

from siglip_jax.cli.output import shown

HELP = "say what a checkpoint is"
EPILOG = """examples:
  siglip-jax info
  siglip-jax info google/siglip-base-patch16-224 --json"""

SIDE_FILES = (
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", nargs="?", metavar="NAME_OR_PATH", help="Hub name, directory or weights file")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Does the job; returns the exit status."""
    facts = describe(arguments.model)
    if arguments.model is None:
        facts["versions"] = versions()
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        print_facts(facts)
    return 0


def describe(name_or_path: str | None) -> dict[str, Any]:
    """Returns the facts about a checkpoint that its configuration and the headers of its weights hold.

    Raises:
      FileNotFoundError: if it is not there.
      ValueError: if it is not one of SigLIP or is damaged.
    """
    from siglip_jax.checkpoints.huggingface import read_architecture, stored_tensors
    from siglip_jax.hub import resolve
    from siglip_jax.inference.engine import EMBEDDED_MODEL

    path = resolve(EMBEDDED_MODEL if name_or_path is None else name_or_path)
    tensors = stored_tensors(path)
    config, architecture = read_architecture(path, tensors)
    files = sorted({tensor.file for tensor in tensors.values()})
    counts = Counter()
    for key, tensor in tensors.items():
        counts[key.split(".")[0] if "." in key else "temperature_and_bias"] += math.prod(tensor.shape)
    directory = path if path.is_dir() else path.parent
    vision = getattr(config, "vision_config", config if "Vision" in architecture else None)
    text = getattr(config, "text_config", config if "Text" in architecture else None)
    return {
        "model": "the embedded model" if name_or_path is None else str(name_or_path),
        "path": str(path),
        "format": "huggingface",
        "architecture": architecture,
        "vision": vision and _vision(vision),
        "text": text and _text(text) if "text_model" in counts else None,
        "parameters": {**counts, "total": counts.total()},
        "stored_as": dict(Counter(tensor.dtype for tensor in tensors.values())),
        "bytes": sum(file.stat().st_size for file in files),
        "weight_files": [file.name for file in files],
        "temperature": _scalar(tensors, "logit_scale", exponential=True),
        "bias": _scalar(tensors, "logit_bias"),
        "processor_files": [name for name in SIDE_FILES if (directory / name).is_file()],
    }


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


def _vision(config: Any) -> dict[str, int]:
    return {
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp_width": config.intermediate_size,
        "image_size": config.image_size,
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


def _scalar(tensors: Any, key: str, exponential: bool = False) -> float | None:
    from siglip_jax.checkpoints.huggingface import open_safetensors

    if key not in tensors:
        return None
    with open_safetensors(tensors[key].file) as file:
        value = float(file.get_tensor(key).reshape(-1)[0])
    return math.exp(value) if exponential else value


def print_facts(facts: dict[str, Any]) -> None:
    """Prints the facts as two columns; on a terminal in colour."""
    rows = list(_rows(facts))
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(name, shown(value, sys.stdout.encoding))
        Console(markup=False, highlight=False).print(table)
        return
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {shown(value, sys.stdout.encoding)}" for name, value in rows))


def _rows(facts: dict[str, Any]) -> Any:
    yield "model", facts["model"]
    yield "path", facts["path"]
    yield "format", f"{facts['format']}, {facts['architecture']}"
    if vision := facts["vision"]:
        size, patch = vision["image_size"], vision["patch_size"]
        yield "image tower", _tower(vision)
        yield "image", f"{size} x {size} pixels, {vision['patches']} patches of {patch} x {patch}"
    if text := facts["text"]:
        yield "text tower", _tower(text)
        yield "text", f"{text['length']} tokens, vocabulary of {text['vocabulary']:,}"
        yield "embedding", f"{text['embedding_width']} wide"
    for part, count in facts["parameters"].items():
        yield f"parameters {part}", f"{count:,}"
    types = ", ".join(f"{count} tensors in {dtype}" for dtype, count in facts["stored_as"].items())
    yield "weights", f"{facts['bytes']:,} bytes, {types}, in {', '.join(facts['weight_files'])}"
    if facts["temperature"] is not None:
        yield "temperature", f"{facts['temperature']:.4f}"
        yield "bias", f"{facts['bias']:.4f}"
    yield "processor", ", ".join(facts["processor_files"]) or "no tokenizer or image processor files"
    yield from facts.get("versions", {}).items()


def _tower(tower: dict[str, int]) -> str:
    return f"width {tower['width']}, depth {tower['depth']}, {tower['heads']} heads, MLP {tower['mlp_width']}"
