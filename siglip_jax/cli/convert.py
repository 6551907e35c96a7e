"""Converts a checkpoint between the formats of Hugging Face, big_vision (.npz), open_clip, timm and orbax.

The format of SRC is recognised from its files. The written checkpoint is read back and compared bit by bit; the exit
status is 1 if anything differs. With --quantization the result is for siglip_jax.load only, and is compared with the
float model on the example images and labels of the package.
"""

import argparse
import json
from typing import Any

from siglip_jax._checks import DTYPES, QUANTIZATIONS
from siglip_jax._files import read_lines
from siglip_jax.checkpoints.formats import FORMATS as KNOWN
from siglip_jax.checkpoints.surgery import INTERPOLATIONS
from siglip_jax.cli._output import progress, say, whole_number

HELP = "convert a checkpoint to another format"
EPILOG = """examples:
  siglip-jax convert google/siglip-base-patch16-224 base.npz --to big_vision
  siglip-jax convert webli_en_b16_224_63724782.npz out/ --to huggingface --dtype bfloat16
  siglip-jax convert model/ larger/ --to huggingface --resolution 384 --dry-run
  siglip-jax convert google/siglip-base-patch16-224 small/ --quantization int8
  siglip-jax convert adapter/ merged/ --to huggingface --base google/siglip-base-patch16-224"""

FORMATS = tuple(name for name, format in KNOWN.items() if not format.inference_only)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("source", metavar="SRC", help="Hub name, directory or file; model.npz:img names one tower")
    parser.add_argument("destination", metavar="DST", help="directory to write, or .npz file for big_vision")
    parser.add_argument("--to", choices=FORMATS, help="format of DST; required without --quantization")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the parameters (default: that of SRC)")
    parser.add_argument(
        "--resolution", type=whole_number, metavar="PIXELS", help="image size; resizes the position table"
    )
    parser.add_argument(
        "--rule", choices=INTERPOLATIONS, default="bicubic", help="interpolation for --resolution (default: bicubic)"
    )
    parser.add_argument(
        "--patch-size", type=whole_number, metavar="PIXELS", help="patch size; resizes the patch embedding"
    )
    parser.add_argument(
        "--text-length",
        type=whole_number,
        metavar="TOKENS",
        help="text length; truncates or stretches the position table",
    )
    parser.add_argument("--tower", choices=("text", "image"), help="write one tower only")
    parser.add_argument(
        "--labels-from", metavar="FILE", help="add a fresh classifier for the labels in FILE, one per line"
    )
    parser.add_argument("--stacked", action="store_true", help="stack the layers of an .npz, for scan in big_vision")
    parser.add_argument("--base", metavar="NAME_OR_PATH", help="checkpoint to merge SRC into, an adapter of PEFT")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="quantize the dense layers of both towers")
    parser.add_argument("--dry-run", action="store_true", help="print the mapping of every tensor and write nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    if arguments.quantization:
        return _quantize(arguments)
    if arguments.to is None:
        raise ValueError(f"--to must be one of {', '.join(FORMATS)}, got none; add --to or --quantization")
    from siglip_jax.checkpoints.convert import convert

    labels = () if arguments.labels_from is None else read_lines(arguments.labels_from, "labels")
    names = ("tower", "patch_size", "resolution", "rule", "text_length", "dtype", "dry_run", "stacked", "base")
    options = {name: getattr(arguments, name) for name in names}
    with progress("written and read back", in_bytes=True) as on_progress:
        done = convert(
            arguments.source, arguments.destination, arguments.to, labels=labels, on_progress=on_progress, **options
        )
    facts = done.to_dict()
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)
    if done.different:
        say(
            f"{done.destination}: {len(done.different)} tensors differ from those written when read back; do not use it"
        )
        return 1
    return 0


def _quantize(a: argparse.Namespace) -> int:
    others = ("to", "dtype", "resolution", "patch_size", "text_length", "tower", "labels_from", "stacked", "dry_run")
    others += ("base",)
    if given := [f"--{name.replace('_', '-')}" for name in others if getattr(a, name)]:
        raise ValueError(f"--quantization must be used alone, got {', '.join(given)} too; do that conversion first")
    from siglip_jax.inference.quantize import quantize_checkpoint

    facts = quantize_checkpoint(a.source, a.destination, a.quantization)
    if a.json:
        print(json.dumps(facts, indent=2))
        return 0
    before, after = facts["bytes_before"], facts["bytes"]
    print(f"{facts['destination']}: {facts['scheme']}, {after:,} bytes instead of {before:,} ({after / before:.2f} x)")
    for kind, cosine in facts["cosine"].items():
        count = facts["examples"]
        print(f"cosine to the float model, {count} {kind}: least {cosine['least']:.5f}, mean {cosine['mean']:.5f}")
    return 0


def _print(facts: dict[str, Any]) -> None:
    if rows := facts.get("rows"):
        cells = [(r["parameter"], " x ".join(map(str, r["shape"])), r["dtype"], r["from"], r["to"]) for r in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    for said in facts["changes"]:
        print(said)
    if "tensors" not in facts:
        print(f"{len(facts['rows'])} parameters, nothing written")
        return
    same = facts["tensors"] - len(facts["different"])
    print(f"{facts['destination']}: {facts['to']}, {facts['architecture']}, {facts['bytes']:,} bytes")
    print(f"read back: {same} of {facts['tensors']} tensors equal to the last bit")
    if facts["copied"]:
        print(f"copied: {', '.join(facts['copied'])}")
