"""What `siglip-jax info --mesh` prints: the memory that each device would hold, and where the parameters would lie."""

import argparse
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from siglip_jax.cli._output import print_table, whole_number
from siglip_jax.models.cost import EXAMPLES_PER_DEVICE, mesh_memory
from siglip_jax.parallel.mesh import AXES

ROWS = {"moments": "Adam moments", "activations": "activations kept"}
CAPTION = """parameters, gradients, moments and batch are exact; the rest is estimated, for scan_layers
and a model that knows its mesh, by mesh=... or jax.set_mesh"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    group = parser.add_argument_group("memory over a mesh of devices, none of which has to be there")
    group.add_argument("--mesh", type=_sizes, metavar="AXES", help="sizes of data, fsdp and tensor: data=4,fsdp=2")
    text = f"image-text pairs over all devices, {EXAMPLES_PER_DEVICE} on each along data and fsdp if not given"
    group.add_argument("--batch", type=whole_number, metavar="N", help=text)
    group.add_argument("--remat", choices=("full",), help="compute the layers again in the backward pass")
    group.add_argument("--dtype", choices=("float32", "bfloat16"), help="compute type, float32 if not given")
    group.add_argument("--table", action="store_true", help="also list every parameter and how it is cut")


def _sizes(text: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(\d{1,9})\s*", part, re.ASCII)
        if match is None or match[1] not in AXES or match[1] in sizes or not int(match[2]):
            raise argparse.ArgumentTypeError(
                f"expected sizes of at least 1 of {', '.join(AXES)}, as in data=4,fsdp=2, found {text!r}"
            )
        sizes[match[1]] = int(match[2])
    return {axis: sizes.get(axis, 1) for axis in AXES}


def wanted(arguments: argparse.Namespace) -> bool:
    """Says whether the memory over a mesh is asked for.

    Raises:
      ValueError: if an option that belongs to a mesh stands without one, or the mesh beside a list.
    """
    if arguments.mesh is None:
        for option in ("batch", "remat", "dtype", "table"):
            if getattr(arguments, option):
                raise ValueError(f"--{option} goes with --mesh; add --mesh, as in --mesh data=4,fsdp=2")
        return False
    if arguments.variants:
        raise ValueError("expected --mesh or --variants, found both; leave one out")
    return True


def run(arguments: argparse.Namespace) -> None:
    """Prints the memory, and with `--table` the parameters.

    Raises:
      FileNotFoundError: if the model is not there.
      ValueError: if it is not one of SigLIP, or the batch cannot be divided evenly.
    """
    options = {"remat": arguments.remat, "dtype": arguments.dtype or "float32"}
    facts = mesh_memory(arguments.model, arguments.mesh, arguments.batch, **options)
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    sizes, batch = facts["mesh"], facts["batch"]
    each = f"{batch // (sizes['data'] * sizes['fsdp']):,} on a device"
    each += "" if arguments.batch else ", the default of --batch"
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
        (ROWS.get(key, key), _size(facts["forward"][key]), _size(value))
        for key, value in facts["training_step"].items()
    ]
    print_table(("on each device", "forward pass", "training step"), rows, 1)
    print(CAPTION)
    if arguments.table:
        print()
        print_table(("parameter", "shape", "sharded over", "on each device"), _lines(facts["table"]), 3)


def _lines(table: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Returns a line for each parameter, but one for all layers of a tower, and the total."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for row in table:
        line = (re.sub(r"/layers_\d+/", "/layers_*/", row["path"]), " x ".join(map(str, row["shape"])), row["spec"])
        groups.setdefault(line, []).append(row["bytes"])
    lines = [
        (f"{path}  x {len(sizes)}" if "*" in path else path, *others, _size(sum(sizes)))
        for (path, *others), sizes in groups.items()
    ]
    return [*lines, ("total", "", "", _size(sum(row["bytes"] for row in table)))]


def _size(count: int) -> str:
    """Returns bytes in MiB or GiB, to three digits."""
    unit, value = ("GiB", count / 2**30) if count >= 1000 * 2**20 else ("MiB", count / 2**20)
    if value < 0.01:
        return "< 0.01 MiB" if count else "-"
    digits = min(max(2 - math.floor(math.log10(value)), 0), 2)
    return f"{value:,.{digits}f} {unit}"
