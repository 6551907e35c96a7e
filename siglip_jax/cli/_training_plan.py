"""The plan that `siglip-jax train --dry-run` prints: rate and decay of each parameter, schedule, memory, duration."""

import json
import re
from typing import Any

from siglip_jax.evaluation.prompts import brief

COLUMNS, ROWS = 60, 6  # characters of the plot
BLOCKS = " ▁▂▃▄▅▆▇█"


def print_plan(facts: dict[str, Any], as_json: bool) -> None:
    """Prints the plan that `siglip_jax.training.dry_run` returned."""
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    plotted = plot(facts["schedule"], facts["peak_rate"], facts["steps"])
    for line in [*table(facts["parameters"]), "", *plotted, "", *_sentences(facts)]:
        print(line)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a line for each parameter, with equal lines of all layers merged into one."""
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
    lines = [("parameter", "shape", "rate", "decay", "sharded over")]
    lines += [(f"{path}  x {n}" if n > 1 else path, *others) for (path, *others), n in groups.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def plot(curve: list[float], rate: float, steps: int) -> list[str]:
    """Returns the schedule as lines of block characters, below the peak rate and above the number of steps."""
    lines = []
    for row in reversed(range(ROWS)):
        filled = [min(max(value * ROWS - row, 0.0), 1.0) for value in curve]
        lines.append("".join(BLOCKS[round(share * (len(BLOCKS) - 1))] for share in filled).rstrip())
    return [f"rate, at most {rate:g}", *lines, "0" + f"{steps} steps".rjust(COLUMNS - 1)]


_CHANGES = {
    "resolution": "resolution",
    "patch_size": "patch size",
    "batch_size": "batch size",
    "patches": "variable resolution, patches",
}


def _sentences(facts: dict[str, Any]) -> list[str]:
    most = "up to " if facts["lengths"] else ""
    lines = [
        f"{facts['steps']:,} steps of {most}{facts['batch_size']:,} examples, {facts['epochs']:g} epochs of"
        f" {facts['examples']:,}",
        f"{facts['trained_parameters']:,} of {facts['all_parameters']:,} parameters are trained",
        "mesh: " + ", ".join(f"{axis}={size}" for axis, size in facts["mesh"].items()),
    ]
    for stage in facts["stages"] if len(facts["stages"]) > 1 else ():
        changes = "".join(f", {label} {stage[name]}" for name, label in _CHANGES.items() if name in stage)
        lines.append(f"steps {stage['start']:,} to {stage['end']:,}: {' + '.join(stage['losses'])}{changes}")
    for row in facts["losses"] if len(facts["losses"]) > 1 else ():
        weight = "" if row["weight"] is None else f", weight {row['weight']:g}"
        lines.append(
            f"{row['loss']}{weight}: {row['flops'] / 1e12:.3g} TFLOP a step, {row['bytes'] / 2**30:.3g} GiB of weights,"
            " gradients and moments"
        )
    if facts["classes"]:
        lines.append(f"{len(facts['classes']):,} classes in this order: {brief(facts['classes'])}")
    for row in facts["lengths"]:
        lines.append(f"{row['examples']:,} images of {row['patches']:,} patches a step, {row['padding']:.1%} padding")
    if (images := facts["images"]) is not None and images < facts["examples"]:
        lines.append(
            f"{facts['examples']:,} rows name {images:,} images; rows of one image are not each other's negatives"
        )
    if unreadable := len(facts["unreadable"]):
        lines.append(f"{unreadable:,} of {facts['tried']:,} examples that were tried are unreadable")
    if facts["memory_per_device"] is not None:
        lines.append(f"about {facts['memory_per_device'] / 2**30:.2f} GiB on each device, the batch included")
        if facts["device_memory"] is not None and facts["memory_per_device"] > facts["device_memory"]:
            smaller = facts["smaller"] or {}
            words = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in smaller.items())
            lines[-1] += f", which has {facts['device_memory'] / 2**30:.2f} GiB; " + (
                f"a step fits with {words}" if words else "use a smaller batch, or more devices with --mesh fsdp=N"
            )
    return lines
