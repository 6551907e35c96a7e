"""The part of `siglip-jax info` behind `--mesh`: memory per device, and the sharding of each parameter."""

import argparse
import json
import re
from collections.abc import Sequence
from typing import Any

from siglip_jax.cli._output import print_table, size, whole_number
from siglip_jax.models.cost import EXAMPLES_PER_DEVICE, mesh_memory
from siglip_jax.parallel.mesh import AXES

ROWS = {"moments": "Adam moments", "activations": "activations kept"}
CAPTION = """parameters, gradients, moments and batch are exact; the rest is an estimate for scan_layers=True
and a model that is given its mesh, by mesh=... or jax.set_mesh"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    group = parser.add_argument_group("memory over a mesh of devices, which need not exist")
    group.add_argument(
        "--mesh", type=axes, metavar="AXES", help="sizes of the axes data, fsdp and tensor, as in data=4,fsdp=2"
    )
    text = f"image-text pairs in the global batch (default: {EXAMPLES_PER_DEVICE} for each shard of data and fsdp)"
    group.add_argument("--batch-size", "--batch", type=whole_number, metavar="N", help=text)
    group.add_argument("--remat", choices=("full",), help="recompute the layers in the backward pass")
    group.add_argument("--dtype", choices=("float32", "bfloat16"), help="compute dtype (default: float32)")
    group.add_argument("--table", action="store_true", help="also list the sharding of every parameter")


def axes(text: str) -> dict[str, int]:
    """Parses the sizes of the axes of a mesh, of which some may be left out."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(\d{1,9})\s*", part, re.ASCII)
        if match is None or match[1] not in AXES or match[1] in sizes or not int(match[2]):
            raise argparse.ArgumentTypeError(
                f"axes must be sizes of at least 1 for {', '.join(AXES)}, got {text!r}; write data=4,fsdp=2"
            )
        sizes[match[1]] = int(match[2])
    return sizes


def wanted(arguments: argparse.Namespace) -> bool:
    """Returns whether the memory over a mesh is requested.

    Raises:
      ValueError: if an option of `--mesh` is given without it, or `--mesh` with `--variants`.
    """
    if arguments.mesh is None:
        for option in ("batch-size", "remat", "dtype", "table"):
            if getattr(arguments, option.replace("-", "_")):
                raise ValueError(
                    f"--{option} must be used with --mesh, got it alone; add --mesh, as in --mesh data=4,fsdp=2"
                )
        return False
    if arguments.variants:
        raise ValueError("the options must be --mesh or --variants, got both; leave one out")
    return True


def run(arguments: argparse.Namespace) -> None:
    """Prints the memory per device, and with `--table` the sharding of the parameters.

    Raises:
      FileNotFoundError: if the model does not exist.
      ValueError: if it is not a SigLIP model, or the mesh does not divide the batch.
    """
    options = {"remat": arguments.remat, "dtype": arguments.dtype or "float32"}
    facts = mesh_memory(arguments.model, arguments.mesh, arguments.batch_size, **options)
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    sizes, batch = facts["mesh"], facts["batch"]
    each = f"{batch // (sizes['data'] * sizes['fsdp']):,} on a device"
    each += "" if arguments.batch_size else ", the default of --batch-size"
    print_table(
        None,
        [
            ("model", facts["model"]),
            ("mesh", f"{' x '.join(f'{axis}={size}' for axis, size in sizes.items())}, {facts['devices']:,} devices"),
            ("batch", f"{batch:,} image-text pairs, {each}"),
            ("compute", f"{facts['dtype']}, {'remat full' if facts['remat'] else 'no remat'}"),
        ],
        2,
    )
    print()
    rows = [
        (ROWS.get(key, key), size(facts["forward"][key]), size(value)) for key, value in facts["training_step"].items()
    ]
    print_table(("on each device", "forward pass", "training step"), rows, 1)
    print(CAPTION)
    if arguments.table:
        print()
        print_table(("parameter", "shape", "sharded over", "on each device"), _lines(facts["table"]), 3)


def _lines(table: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Returns a line for each parameter, with the layers of a tower merged into one, and a line of the total."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for row in table:
        line = (re.sub(r"/layers_\d+/", "/layers_*/", row["path"]), " x ".join(map(str, row["shape"])), row["spec"])
        groups.setdefault(line, []).append(row["bytes"])
    lines = [
        (f"{path}  x {len(sizes)}" if "*" in path else path, *others, size(sum(sizes)))
        for (path, *others), sizes in groups.items()
    ]
    return [*lines, ("total", "", "", size(sum(row["bytes"] for row in table)))]
