"""Plots of plans: memory, time and traffic of one, or the largest batches of several."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from siglip_jax._files import write_atomically
from siglip_jax.planning.plan import Plan
from siglip_jax.plots.canvas import check_plot, render

GIB = 2**30
BLUE, ORANGE, GREY, RED = "#4575b4", "#fdae61", "#bbbbbb", "#d73027"


def plot_plan(plans: Plan | Sequence[Plan], path: str | os.PathLike[str] | None = None) -> Any:
    """Draws a plan: bytes on a chip, time, and traffic; or, of several, their batches, speeds and memory.

    Args:
      plans: a plan as from `plan`, or several as from `largest_batches`.
      path: file to write the plot to, ending in .png, .pdf, .svg, .jpg, .jpeg or .webp; None: the plot is not written.

    Returns:
      A matplotlib `Figure`, drawn without pyplot.

    Raises:
      FileNotFoundError: if the folder of `path` does not exist.
      ValueError: if matplotlib is not installed, or `path` cannot be written or has an unknown ending.

    No example: a plan compiles for a minute; notebooks/07_plan_a_pod.ipynb shows plots.
    """
    check_plot(path, 1, 1)
    several = [plans] if isinstance(plans, Plan) else list(plans)
    if not several:
        raise ValueError("plans must be at least one plan, got none; nothing fits, use more chips or a smaller model")
    figure = _one(several[0]) if isinstance(plans, Plan) else _many(several)
    if path is not None:
        write_atomically(Path(path), render(figure, Path(path).suffix[1:].lower()))
    return figure


def _figure(rows: int, heights: Sequence[float], title: str, below: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, sum(heights)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 1, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0]
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)
    figure.supxlabel(below, fontsize=8, color="grey", x=0.01, ha="left", parse_math=False)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8, length=2)
    return figure, axes


def _one(plan: Plan) -> Any:
    """Draws one plan."""
    traffic = plan.traffic()
    heights = [1.3, 1.1, 0.9 + 0.28 * max(len(traffic), 1)]
    mesh = " x ".join(f"{axis}={n}" for axis, n in plan.mesh.items() if n > 1) or "one chip"
    title = f"{plan.model}: {plan.work}, {plan.recipe.batch_size:,} over {plan.topology} ({mesh})"
    figure, (memory, time, links) = _figure(3, heights, title, plan.estimated)
    _bars(memory, _parts_of_memory(plan), "GiB on a chip")
    memory.axvline(plan.memory / GIB, color=RED, lw=1.5)
    memory.text(plan.memory / GIB, 0.5, " HBM", color=RED, fontsize=8, va="bottom")
    memory.set_xlim(0, 1.12 * max(plan.memory, plan.needed) / GIB)
    if plan.seconds is None or plan.exposed_seconds is None:
        time.text(0, 0, "no time: it does not fit", fontsize=9)
        time.set_axis_off()
    else:
        ideal = (plan.mfu or 0.0) * plan.seconds
        parts = [
            ("products at peak", ideal, BLUE),
            ("rest of the computation", plan.seconds - plan.exposed_seconds - ideal, ORANGE),
            ("waiting for links", plan.exposed_seconds, RED),
        ]
        scale, unit = (1, "s") if plan.seconds >= 1 else (1000, "ms")
        _bars(time, [(name, scale * value, color) for name, value, color in parts], f"{unit} a run")
    names = [f"{row['kind']}, {row['over']}" + ("" if row["asynchronous"] else ", alone") for row in traffic]
    for i, row in enumerate(traffic):
        hidden = 1000 * (row["link_seconds"] - row["exposed_seconds"])
        links.barh(i, hidden, color=GREY, label="hidden" if i == 0 else None)
        links.barh(i, 1000 * row["exposed_seconds"], left=hidden, color=RED, label="waited for" if i == 0 else None)
    links.set_yticks(range(len(names)), names)
    links.invert_yaxis()
    links.set_xlim(left=0)
    links.set_xlabel("ms on the links a run", fontsize=8)
    if traffic:
        links.legend(fontsize=8, frameon=False, loc="lower right")
    else:
        links.text(0, 0, "nothing travels between chips", fontsize=9)
        links.set_axis_off()
    return figure


def _parts_of_memory(plan: Plan) -> list[tuple[str, float, str]]:
    if plan.arguments is None:
        return [("needed, more than there is", plan.needed / GIB, RED)]
    rest = plan.needed - plan.arguments
    return [("arguments", plan.arguments / GIB, BLUE), ("temporaries and results at the peak", rest / GIB, ORANGE)]


def _bars(axes: Any, parts: Sequence[tuple[str, float, str]], unit: str) -> None:
    """Draws the parts of a whole as one bar."""
    left = 0.0
    for name, size, color in parts:
        axes.barh(0, size, left=left, color=color, label=f"{name} {size:.3g}")
        left += size
    axes.set_yticks([])
    axes.set_xlabel(unit, fontsize=8)
    axes.set_ylim(-0.5, 1.3)
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper left")


def _many(plans: Sequence[Plan]) -> Any:
    """Draws the batches of several plans, with their speed and memory."""
    title = f"{plans[0].model} on {plans[0].topology}: the largest batch of each case, the fastest first"
    figure, (axes,) = _figure(1, [1.2 + 0.42 * len(plans)], title, plans[0].estimated)
    names = []
    for i, plan in enumerate(plans):
        speed = plan.examples_per_second or 0.0
        axes.barh(i, speed, color=BLUE)
        text = f" batch {plan.recipe.batch_size:,}, {plan.mfu or 0:.0%} of peak, {plan.needed / GIB:.1f} GiB"
        axes.text(speed, i, text, fontsize=8, va="center")
        mesh = " x ".join(f"{axis}={n}" for axis, n in plan.mesh.items() if n > 1)
        names.append(f"remat {plan.recipe.remat or 'none'}\n{mesh}")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.7 * max((plan.examples_per_second or 0.0 for plan in plans), default=1.0))
    axes.set_xlabel("examples per second", fontsize=8)
    return figure
