"""What `siglip-jax train --dry-run` prints: each parameter's treatment, the schedule as a plot, memory, duration."""

import json
import re
from typing import Any

import numpy as np

from siglip_jax.checkpoints.table import flatten
from siglip_jax.parallel.memory import estimate, placements
from siglip_jax.parallel.mesh import AXES
from siglip_jax.training.prepare import Model, Plan
from siglip_jax.training.recipe import Recipe

COLUMNS, ROWS = 60, 6  # characters of the plot
BLOCKS = " ▁▂▃▄▅▆▇█"


def print_plan(recipe: Recipe, model: Model, plan: Plan, examples: int, as_json: bool) -> None:
    """Prints the plan of a run over data with `examples` in an epoch."""
    sizes = {"data": recipe.mesh.data, "fsdp": recipe.mesh.fsdp, "tensor": recipe.mesh.tensor}
    if model.module.mesh is not None:
        sizes = {axis: model.module.mesh.shape[axis] for axis in AXES}
    sizes = {axis: max(size, 1) for axis, size in sizes.items()}
    shapes = {path: tuple(x.shape) for path, x in flatten(model.params).items()}
    rows = []
    options = recipe.optimizer
    for placed in placements({path: s for path, s in shapes.items() if not path.startswith("lora/")}, sizes):
        entry = model.table[placed.path]
        rows.append(_row(placed.path, placed.shape, entry, options, placed.spec))
    rows += [
        _row(path, shape, model.table[path], options, "whole")
        for path, shape in shapes.items()
        if path.startswith("lora/")
    ]
    trained = sum(int(np.prod(shapes[row["parameter"]])) for row in rows if not row["frozen"])
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    memory = _memory(recipe, model, sizes)
    facts = {
        "steps": plan.steps,
        "batch_size": recipe.batch_size,
        "examples": examples,
        "epochs": round(plan.steps * recipe.batch_size / examples, 3),
        "trained_parameters": trained,
        "all_parameters": total,
        "mesh": sizes,
        "memory_per_device": memory,
    }
    curve = [float(plan.schedule(step)) for step in np.linspace(0, plan.steps, COLUMNS).round().astype(int)]
    if as_json:
        print(json.dumps(facts | {"schedule": curve, "parameters": rows}, indent=2))
        return
    for line in [*table(rows), "", *plot(curve, options.rate, plan.steps), "", *_sentences(facts)]:
        print(line)


def _row(path: str, shape: tuple[int, ...], entry: Any, options: Any, spec: str) -> dict[str, Any]:
    return {
        "parameter": path,
        "shape": list(shape),
        "rate": options.rate * entry.rate,
        "decay": options.weight_decay * entry.decay,
        "frozen": entry.frozen,
        "sharding": spec,
    }


def _memory(recipe: Recipe, model: Model, sizes: dict[str, int]) -> int | None:
    """Returns bytes on each device as `siglip-jax info --mesh` estimates them; None where that does not apply."""
    if recipe.task != "pairs" or recipe.locked_images or recipe.remat not in (None, "full"):
        return None
    shapes = {p: tuple(x.shape) for p, x in flatten(model.params).items() if not p.startswith("lora/")}
    rows = placements(shapes, sizes)
    batch = recipe.batch_size // recipe.micro_batches
    found = estimate(model.module.config, rows, sizes, batch, training=True, remat=recipe.remat, dtype=recipe.dtype)
    frozen = sum(row.bytes for row in rows if model.table[row.path].frozen)
    return found.total - 3 * frozen  # no gradient and no moments of what is frozen


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a line for each parameter; the same of all layers is one line."""
    groups: dict[tuple[str, ...], int] = {}
    for row in rows:
        cells = (
            re.sub(r"layers_\d+", "layers_*", row["parameter"]),
            " x ".join(map(str, row["shape"])),
            "frozen" if row["frozen"] else f"{row['rate']:.3g}",
            "-" if row["frozen"] or not row["decay"] else f"{row['decay']:.3g}",
            row["sharding"],
        )
        groups[cells] = groups.get(cells, 0) + 1
    lines = [("parameter", "shape", "rate", "decay", "over devices")]
    lines += [(f"{path}  x {n}" if n > 1 else path, *others) for (path, *others), n in groups.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def plot(curve: list[float], rate: float, steps: int) -> list[str]:
    """Returns the schedule as lines of block characters, with the peak rate above and the steps below."""
    lines = []
    for row in reversed(range(ROWS)):
        filled = [min(max(value * ROWS - row, 0.0), 1.0) for value in curve]
        lines.append("".join(BLOCKS[round(share * (len(BLOCKS) - 1))] for share in filled).rstrip())
    return [f"rate, at most {rate:g}", *lines, "0" + f"{steps} steps".rjust(COLUMNS - 1)]


def _sentences(facts: dict[str, Any]) -> list[str]:
    lines = [
        f"{facts['steps']:,} steps of {facts['batch_size']:,} examples, {facts['epochs']:g} epochs of"
        f" {facts['examples']:,}",
        f"{facts['trained_parameters']:,} of {facts['all_parameters']:,} parameters are trained",
        "mesh: " + ", ".join(f"{axis}={size}" for axis, size in facts["mesh"].items()),
    ]
    if facts["memory_per_device"] is not None:
        lines.append(f"about {facts['memory_per_device'] / 2**30:.2f} GiB on each device, the batch included")
    return lines
