"""Describes a checkpoint from its headers: towers, sizes, parameters, temperature and bias, files.

Also describes how the model would run in float32 on this machine. Without a name it describes the bundled model and
the versions and devices in use. A released checkpoint that is not on this disk is described from the registry;
nothing is downloaded.
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any

from siglip_jax.cli import _mesh as mesh
from siglip_jax.cli._output import print_table
from siglip_jax.configs.variants import VARIANTS, Variant

HELP = "describe a checkpoint"
EPILOG = """examples:
  siglip-jax info
  siglip-jax info google/siglip-base-patch16-224 --json
  siglip-jax info google/siglip-base-patch16-224 --mesh data=4,fsdp=2
  siglip-jax info --variants
  siglip-jax info --layouts"""

METRICS = {
    "imagenet": "ImageNet zero-shot",
    "coco_text_to_image": "COCO R@1 text to image",
    "coco_image_to_text": "image to text",
}
HEADERS = ("name", "M", "px", "text", "IN-1k", "T->I", "I->T")
LAYOUTS_CAPTION = """parity: largest relative difference of the outputs from the owning library's in float32, or
equal bits; writes: equal bits when the owning library reads what is written, - where nothing is written;
an adapter is written by training with LoRA, and not by convert"""
CAPTION = """M: parameters in millions; px: image size; text: tokens; published metrics in %:
ImageNet-1k zero-shot, COCO recall at 1 from text to image, from image to text"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", nargs="?", metavar="NAME_OR_PATH", help="Hub name, directory or weights file")
    parser.add_argument(
        "--variants", action="store_true", help="list the released checkpoints and their published metrics"
    )
    parser.add_argument(
        "--layouts",
        action="store_true",
        help="list the layouts of weights that are read and written",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    mesh.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    if mesh.wanted(arguments):
        mesh.run(arguments)
        return 0
    if arguments.variants and arguments.model is not None and not arguments.layouts:
        raise ValueError(f"info must have a model or --variants, got both; leave out {arguments.model!r} or --variants")
    if arguments.layouts:
        if arguments.model is not None or arguments.variants:
            raise ValueError(
                "info must have a model, --variants or --layouts, got several; leave out all but one of them"
            )
        from siglip_jax.checkpoints import LAYOUTS, Layout

        if arguments.json:
            print(json.dumps([layout._asdict() for layout in LAYOUTS], indent=2))
        else:
            print_table(Layout._fields[:-1], [layout[:-1] for layout in LAYOUTS], 2, LAYOUTS_CAPTION)
        return 0
    if arguments.variants:
        if arguments.json:
            print(json.dumps([variant.to_dict() for variant in VARIANTS], indent=2))
        else:
            print_table(HEADERS, [_cells(variant) for variant in VARIANTS], 1, CAPTION)
        return 0
    from siglip_jax.inference.bench import versions
    from siglip_jax.inference.describe import describe_model

    facts = describe_model(arguments.model)
    if arguments.model is None:
        facts["versions"] = versions()
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        print_table(None, list(_rows(facts)), 2)
    return 0


def _rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "model", facts["model"]
    yield "path", facts["path"] or "not on this disk; from the registry"
    scheme = f" to {facts['quantization']}" if facts["quantization"] else ""
    part = f", the image tower of a larger model ({facts['part_of']})" if facts["part_of"] else ""
    yield "format", f"{facts['format']}{scheme}, {facts['architecture']}{part}"
    for note in facts["notes"]:
        yield "note", note
    if vision := facts["vision"]:
        size, patch, patches = vision["image_size"], vision["patch_size"], vision["patches"]
        yield "image tower", _tower(vision)
        if size is None:
            yield "image", f"any size and aspect ratio, patches of {patch} x {patch}, {patches} positions to resize"
        else:
            yield "image", f"{size} x {size} pixels, {patches} patches of {patch} x {patch}"
    if text := facts["text"]:
        yield "text tower", _tower(text)
        yield "text", f"{text['length']} tokens, vocabulary of {text['vocabulary']:,}"
        yield "embedding", f"{text['embedding_width']} wide"
    for part, count in facts["parameters"].items():
        yield f"parameters {part}", f"{count:,}"
    if facts["path"]:
        types = ", ".join(f"{count} tensors in {dtype}" for dtype, count in facts["stored_as"].items())
        yield "weights", f"{facts['bytes']:,} bytes, {types}, in {', '.join(facts['weight_files'])}"
        if facts["temperature"] is not None:
            yield "temperature", f"{facts['temperature']:.4f}"
            yield "bias", f"{facts['bias']:.4f}"
        yield "processor", ", ".join(facts["processor_files"]) or "no tokenizer or image processor files"
    if variant := facts["variant"]:
        yield from _variant_rows(variant, of_files=facts["path"] is not None)
    yield from facts["engine"].items()
    yield from facts.get("versions", {}).items()


def _variant_rows(variant: dict[str, Any], of_files: bool) -> Iterator[tuple[str, str]]:
    if of_files:
        yield "same shapes as", variant["name"]
    else:
        head = "" if variant["text_head"] else ", without the projection of the text tower"
        yield "original", f"{variant['location']}{head}"
        kind, vocabulary = variant["tokenizer"], variant["vocabulary"]
        yield "tokenizer", kind if kind == vocabulary else f"{kind}, vocabulary {vocabulary}"
        yield "resampling", variant["resample"]
    metrics = [f"{what} {variant[field]} %" for field, what in METRICS.items() if variant[field] is not None]
    if metrics:
        published = "published for it" if of_files else "published"
        yield published, f"{', '.join(metrics)} ({variant['source']})"


def _cells(variant: Variant) -> tuple[str, ...]:
    metrics = [getattr(variant, field) for field in METRICS]
    return (
        variant.name,
        f"{variant.parameters / 1e6:,.0f}",
        "any" if variant.image_size is None else str(variant.image_size),
        str(variant.text_length),
        *("-" if metric is None else f"{metric:.1f}" for metric in metrics),
    )


def _tower(tower: dict[str, int]) -> str:
    return f"width {tower['width']}, depth {tower['depth']}, {tower['heads']} heads, MLP {tower['mlp_width']}"
