"""A plot of a diagnosis: norms of the position table, attention that is the same in all images, norms by layer."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from siglip_jax._files import write_atomically
from siglip_jax.inference.diagnose import TIMES, Diagnosis
from siglip_jax.plots.canvas import check_plot, render, shortened

BLUE, RED, GREY = "#4575b4", "#d73027", "#888888"


def plot_diagnosis(diagnosis: Diagnosis, path: str | os.PathLike[str] | None = None) -> Any:
    """Draws a diagnosis: the norms of the position table, the mean attention and its spread, and norms by layer.

    Frames mark the patches that stand out.

    Args:
      diagnosis: result of `siglip_jax.inference.diagnose`.
      path: file to write the plot to, ending in .png, .pdf, .svg, .jpg, .jpeg or .webp; None: the plot is not written.

    Returns:
      A matplotlib `Figure`, drawn without pyplot.

    Raises:
      FileNotFoundError: if the folder of `path` does not exist.
      ValueError: if matplotlib is not installed, or `path` cannot be written or has an unknown ending.

    Example:
      >>> import siglip_jax
      >>> figure = plot_diagnosis(siglip_jax.inference.diagnose())
      >>> figure.axes[0].get_title()
      'norm of the position table'
    """
    check_plot(path, 1, 1)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    maps: list[tuple[str, Any, Any]] = [
        ("norm of the position table", diagnosis.position_norms, diagnosis.position_outliers)
    ]
    if diagnosis.attention is not None and diagnosis.attention_spread is not None:
        even = diagnosis.attention.size
        maps.append(
            ("mean attention,\nmultiples of an even share", diagnosis.attention * even, diagnosis.fixed_patches)
        )
        maps.append(("its spread over images,\nmultiples of an even share", diagnosis.attention_spread * even, ()))
    figure = Figure(figsize=(3 * len(maps) + 4, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    *squares, layers = figure.subplots(1, len(maps) + 1, gridspec_kw={"width_ratios": [3] * len(maps) + [4]})
    figure.suptitle(
        f"{shortened(diagnosis.model, 80, 1)}: {diagnosis.images} images",
        fontsize=11,
        x=0.01,
        ha="left",
        parse_math=False,
    )
    for axes, (title, values, spots) in zip(squares, maps, strict=True):
        _square(figure, axes, title, values, spots)
    _layers(layers, diagnosis)
    if path is not None:
        write_atomically(Path(path), render(figure, Path(path).suffix[1:].lower()))
    return figure


def _square(figure: Any, axes: Any, title: str, values: np.ndarray, spots: Any) -> None:
    """Draws a map of the grid with frames around spots."""
    from matplotlib.patches import Rectangle

    shown = axes.imshow(values, cmap="viridis", vmin=0)
    figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.03).ax.tick_params(labelsize=7, length=2)
    for spot in spots:
        corner = (spot.column - 0.5, spot.row - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=RED, linewidth=1.8))
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("column", fontsize=8)
    axes.set_ylabel("row", fontsize=8)
    axes.tick_params(labelsize=7, length=2)


def _layers(axes: Any, diagnosis: Diagnosis) -> None:
    """Draws the median and the largest norm of tokens by layer."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    depth = np.arange(len(diagnosis.median_norms))
    axes.plot(depth, diagnosis.median_norms, color=BLUE, marker="o", markersize=3, label="median")
    axes.plot(
        depth, diagnosis.median_norms * diagnosis.largest_norms, color=RED, marker="o", markersize=3, label="largest"
    )
    axes.plot(depth, TIMES * diagnosis.median_norms, color=GREY, linestyle=":", label=f"{TIMES:g} x the median")
    axes.set_ylim(bottom=0)
    axes.set_title("norms of tokens", fontsize=9)
    axes.set_xlabel("layer (0: embeddings)", fontsize=8)
    axes.tick_params(labelsize=7, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
