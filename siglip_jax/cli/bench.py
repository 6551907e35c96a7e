"""Measures a model on this machine: time to load, images and texts per second for each batch size, peak memory.

A tower is timed from arrays in host memory to embeddings in host memory; GFLOP/s counts its matrix products. Image
preparation decodes a JPEG of 640 x 480 and resizes it, in threads. Times are medians, with the quartiles in brackets.
"""

import argparse
import json
import math
from typing import Any

from siglip_jax._checks import DTYPES, QUANTIZATIONS
from siglip_jax.cli._output import print_table, progress, whole_number

HELP = "measure the speed of a model on this machine"
EPILOG = """examples:
  siglip-jax bench
  siglip-jax bench --model google/siglip-base-patch16-224 --batch-sizes 1 8 --dtype bfloat16
  siglip-jax bench --seconds 5 --json"""

HEADERS = ("what", "batch", "time", "quartiles", "per second", "GFLOP/s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="Hub name or directory (default: the bundled model)")
    parser.add_argument(
        "--batch-sizes",
        type=whole_number,
        nargs="+",
        default=[1, 8, 32],
        metavar="N",
        help="batch sizes (default: 1 8 32)",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES[:2], default="float32", help="dtype of parameters and computation (default: float32)"
    )
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="number format of the weights (default: none)")
    parser.add_argument(
        "--seconds", type=_seconds, default=2.0, metavar="S", help="duration of each measurement (default: 2)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from siglip_jax.inference.bench import bench

    with progress("speeds") as on_progress:
        facts = bench(
            arguments.model,
            arguments.batch_sizes,
            dtype=arguments.dtype,
            quantization=arguments.quantization,
            seconds=arguments.seconds,
            on_progress=on_progress,
        )
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)
    return 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"seconds must be a number above 0, got {text!r}")
    return seconds


def _print(facts: dict[str, Any]) -> None:
    weights = f", weights {facts['quantization']}" if facts["quantization"] else ""
    rows = [
        ("model", f"{facts['model']}, {facts['dtype']}{weights}"),
        ("load", f"{facts['load_seconds']:.2f} s"),
        ("first embedding", f"{facts['first_embedding_seconds']:.2f} s, loading and compiling included"),
        ("peak memory", ", ".join(f"{size / 2**20:,.0f} MiB {where}" for where, size in facts["peak_bytes"].items())),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
    ]
    print_table(None, rows, 2)
    print()
    print_table(HEADERS, [_cells(speed) for speed in facts["speed"]], 1)


def _cells(speed: dict[str, Any]) -> tuple[str, ...]:
    flops = speed["gflops_per_second"]
    return (
        speed["what"],
        str(speed["batch_size"]),
        f"{1000 * speed['seconds']:.2f} ms",
        f"[{1000 * speed['low']:.2f}, {1000 * speed['high']:.2f}]",
        f"{speed['per_second']:,.1f}",
        "-" if flops is None else f"{flops:,.1f}",
    )
