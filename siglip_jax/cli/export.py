"""Exports both encoders of a model as jax.export artefacts, which run on the given platforms without this package.

DIR receives the programs, their parameters as safetensors, the files of the processor, manifest.json, and
run.py, which shows how to use them. jax promises to run such artefacts for six months after the release that wrote
them.
"""

import argparse
import json

from siglip_jax._checks import DTYPES
from siglip_jax.inference.export import DEFAULT_PLATFORMS, PLATFORMS

HELP = "export the encoders to run without this package"
EPILOG = """examples:
  siglip-jax export --out exported/
  siglip-jax export --model google/siglip-base-patch16-224 --out base/ --dtype bfloat16 --platforms cuda tpu
  python exported/run.py cat.png "a cat" "a dog\""""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--out", required=True, metavar="DIR", help="new directory for the export")
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="Hub name or directory (default: the bundled model)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="dtype of parameters and computation (default: float32)"
    )
    parser.add_argument(
        "--platforms",
        nargs="+",
        choices=PLATFORMS,
        default=list(DEFAULT_PLATFORMS),
        metavar="PLATFORM",
        help=f"any of {', '.join(PLATFORMS)} (default: {' '.join(DEFAULT_PLATFORMS)})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from siglip_jax.inference.export import export
    from siglip_jax.inference.load import load

    manifest = export(load(arguments.model, dtype=arguments.dtype), arguments.out, platforms=arguments.platforms)
    if arguments.json:
        print(json.dumps(manifest, indent=2))
        return 0
    for name, encoder in manifest["encoders"].items():
        shape = " x ".join(map(str, encoder["input"]))
        sizes = [manifest["files"][encoder[part]]["bytes"] for part in ("program", "params")]
        print(f"{name}: {shape} {encoder['input_dtype']} -> {encoder['output'][1]}, {sizes[0]:,} + {sizes[1]:,} bytes")
    platforms = ", ".join(manifest["platforms"])
    print(f"{arguments.out}: {manifest['dtype']} for {platforms}; jax {manifest['jax_version']}; run.py runs it")
    print(manifest["promise"])
    return 0
