"""Says what a training step or forward pass takes on TPUs that need not be there: does it fit, how fast, what travels.

The compiler of TPUs compiles it on this machine; no weights of a released model are read, and nothing is computed.
Every number is its estimate, not a measurement. `siglip-jax info --mesh` estimates memory at once and without it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from siglip_jax.cli._mesh import axes
from siglip_jax.cli._output import percent, print_table, progress, size, whole_number
from siglip_jax.training.recipes import RECIPES

HELP = "say what a model takes on TPUs that need not be there"
EPILOG = """examples:
  siglip-jax plan google/siglip-base-patch16-224 --topology v5e:2x4 --batch-size 512
  siglip-jax plan google/siglip-base-patch16-224 --topology v5e:4x4 --recipe scratch-b16 --mesh fsdp=4
  siglip-jax plan so400m/ --topology v5p:8x8x8 --recipe scratch-b16 --batch-size 32768 --mesh fsdp=8 --json
  siglip-jax plan google/siglip-base-patch16-224 --topology v6e:2x4 --recipe scratch-b16 --search --save-plot p.png"""

REMATS = ("none", "full", "dots", "dots_with_no_batch_dims", "attention_and_mlp_input")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "model", metavar="NAME_OR_PATH", nargs="?", help="Hub name or directory (default: the bundled model)"
    )
    add = parser.add_argument
    add("--topology", required=True, metavar="NAME", help="machine, as in v5e:16x16, v5p:8x8x8 or v6e:2x4")
    add(
        "--batch-size",
        "--batch",
        type=whole_number,
        metavar="N",
        help="image-text pairs on all chips (default: that of the recipe)",
    )
    add("--recipe", choices=tuple(RECIPES), help="plan its training step (default: a forward pass)")
    add("--stage", type=whole_number, metavar="N", help="stage of a recipe of several, from 1 (default: the last)")
    add("--mesh", type=axes, metavar="AXES", help="sizes of the axes data, fsdp and tensor, as in data=32,fsdp=8")
    add("--remat", choices=REMATS, help="what the backward pass recomputes (default: that of the recipe)")
    add("--dtype", choices=("float32", "bfloat16"), help="compute dtype (default: that of the recipe, or bfloat16)")
    add("--micro-batches", type=whole_number, metavar="N", help="pieces of a step (default: those of the recipe)")
    add("--scan-layers", action=argparse.BooleanOptionalAction, help="stack the layers (default: as the recipe does)")
    add("--examples", type=whole_number, metavar="N", help="examples of an epoch, for the days of a recipe in epochs")
    add(
        "--search", action="store_true", help="find the largest batch for each remat policy and mesh, the fastest first"
    )
    add("--json", action="store_true", help="print JSON")
    add("--save-plot", type=Path, metavar="FILE", help="draw the plan (.png, .pdf, .svg, .jpg, .jpeg or .webp)")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from siglip_jax.planning import largest_batches, plan, plot_plan
    from siglip_jax.plots.canvas import check_plot

    if arguments.save_plot:
        check_plot(arguments.save_plot, 1, 1)
    fields = fields_of(arguments)
    if arguments.search:
        found: Any = _searched(arguments, fields, largest_batches)
    else:
        asked = (arguments.model, arguments.topology, arguments.batch_size, arguments.recipe)
        found = plan(*asked, examples=arguments.examples, stage=arguments.stage, **fields)
        print_found(found, arguments.json)
    if arguments.save_plot:
        plot_plan(found, arguments.save_plot)
    return 0


def _searched(arguments: argparse.Namespace, fields: dict[str, Any], search: Any) -> list[Any]:
    """Searches and prints the largest batches.

    Raises:
      ValueError: if an option is missing or has no meaning for a search, or nothing fits.
    """
    if arguments.recipe is None or arguments.batch_size is not None:
        given = "no --recipe" if arguments.recipe is None else "--batch-size"
        raise ValueError(f"--search must be used with --recipe and without --batch-size, which it finds, got {given}")
    chosen: dict[str, Any] = {}
    if "mesh" in fields:
        chosen["meshes"] = [fields.pop("mesh")]
    if "remat" in fields:
        chosen["remats"] = [fields.pop("remat")]
    fields.pop("scan_layers", None)
    with progress("cases") as on_progress:
        found = search(
            arguments.model, arguments.topology, arguments.recipe, on_progress=on_progress, **chosen, **fields
        )
    if not found:
        raise ValueError(
            f"the machine must have the memory for one example a shard, got {arguments.topology}; use more chips, or"
            " shard over more with --mesh fsdp=N"
        )
    if arguments.json:
        print(json.dumps([plan.to_dict() for plan in found], indent=2))
        return found
    headers = ("remat", "mesh", "batch", "a chip", "memory", "time", "share of peak", "examples/s")
    print_table(headers, [_searched_row(plan) for plan in found], 2)
    print(found[0].estimated)
    return found


def _searched_row(plan: Any) -> tuple[str, ...]:
    mesh = " x ".join(f"{axis}={n}" for axis, n in plan.mesh.items())
    speed = (_duration(plan.seconds), percent(plan.mfu), f"{plan.examples_per_second:,.0f}")
    rows = plan.recipe.batch_size
    return (plan.recipe.remat or "none", mesh, f"{rows:,}", f"{rows / plan.chips:g}", size(plan.needed), *speed)


def fields_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields of the recipe that the options change."""
    fields: dict[str, Any] = {name: getattr(arguments, name) for name in ("dtype", "micro_batches", "scan_layers")}
    fields = {name: value for name, value in fields.items() if value is not None}
    if arguments.remat is not None:
        fields["remat"] = None if arguments.remat == "none" else arguments.remat
    return fields | ({} if arguments.mesh is None else {"mesh": arguments.mesh})


def print_found(found: Any, as_json: bool) -> None:
    """Prints a `siglip_jax.planning.Plan`."""
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
        return
    print_table(None, rows_of(found), 2)
    if found.collectives:
        print()
        headers = ("collectives", "over", "overlapped", "times", "sent by a chip", "on the links", "waited for")
        print_table(headers, [_traffic_row(row) for row in found.traffic()], 3)
    print()
    for sentence in found.unknown:
        print(sentence)
    print(found.estimated)


def rows_of(found: Any) -> list[tuple[str, str]]:
    """Returns the lines of the table of a plan."""
    recipe = found.recipe
    mesh = " x ".join(f"{axis}={n}" for axis, n in found.mesh.items())
    remat = f"remat {recipe.remat}" if recipe.remat else "no remat"
    layers = "stacked layers" if recipe.scan_layers else "separate layers"
    pieces = f", in {recipe.micro_batches} micro-batches" if recipe.micro_batches > 1 else ""
    rows = [
        ("model", found.model),
        ("work", f"{found.work}, {recipe.dtype}, {remat}, {layers}"),
        ("machine", f"{found.topology}, {found.chips:,} chips, {mesh}"),
        ("batch", f"{recipe.batch_size:,}, {recipe.batch_size / found.chips:g} a chip{pieces}"),
        *(("  patches", _length(row)) for row in found.lengths),
        ("fits", _fits(found)),
    ]
    if found.arguments is not None and found.temporaries is not None:
        rest = ", not all at once" if found.arguments + found.temporaries > found.needed else ""
        rows += [("  arguments", size(found.arguments)), ("  temporaries", size(found.temporaries) + rest)]
    operations = f"{found.model_flops:.3g} of the model"
    if found.flops is not None:
        operations += f"; {found.flops * found.chips:.3g} in the program"
    rows.append(("operations", operations))
    if found.seconds is not None and found.exposed_seconds is not None and found.mfu is not None:
        speed = found.examples_per_second or 0.0
        rows += [
            ("time", f"{_duration(found.seconds)}, of which {_duration(found.exposed_seconds)} waiting for the links"),
            ("share of peak", f"{percent(found.mfu)} (operations of the model)"),
            ("speed", f"{speed:,.0f} examples/s, {speed / found.chips:,.1f} a chip"),
        ]
    if found.work == "training step":
        rows.append(("run", _run(found)))
    return rows


def _fits(found: Any) -> str:
    return f"{'yes' if found.fits else 'no'}: {size(found.needed)} of {size(found.memory)} a chip"


def _length(row: dict[str, Any]) -> str:
    time = "" if row["seconds"] is None else f", {_duration(row['seconds'])}"
    needed = f"{size(row['needed'])}{'' if row['fits'] else ', which does not fit'}"
    return f"{row['patches']:,}: {row['examples']:,} examples in {row['share']:.0%} of the steps, {needed}{time}"


def _run(found: Any) -> str:
    if found.steps is None:
        return f"{found.recipe.duration}; add --examples for its steps and days"
    if found.days is None or found.chip_hours is None:
        return f"{found.steps:,} steps"
    return f"{found.steps:,} steps, {found.days:,.2f} days, {found.chip_hours:,.0f} chip-hours"


def _traffic_row(row: dict[str, Any]) -> tuple[str, ...]:
    hidden = "no" if not row["asynchronous"] else "yes" if row["product"] else "not by a product"
    times = (_duration(row["link_seconds"]), _duration(row["exposed_seconds"]))
    return (row["kind"], row["over"], hidden, f"{row['count']:,}", size(row["bytes"]), *times)


def _duration(seconds: float) -> str:
    """Returns a time in seconds, milliseconds or microseconds, with three significant digits."""
    unit, value = next(
        ((u, seconds * k) for u, k in (("s", 1), ("ms", 1e3)) if seconds * k >= 1), ("µs", seconds * 1e6)
    )
    return f"{value:.3g} {unit}" if seconds else "0"
