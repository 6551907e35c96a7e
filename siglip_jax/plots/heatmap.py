"""An image of the image x label matrix: thumbnails beside the rows, labels above the columns, probabilities as colour.

matplotlib is imported only when an image is drawn, and never through pyplot, so no window system is touched.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from siglip_jax._files import write_atomically
from siglip_jax.plots.canvas import check_plot, render, shortened, thumbnail


def plot_similarity(
    images: Iterable[Any],
    labels: Sequence[str],
    scores: Float[np.ndarray, "images labels"],
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """Draws probabilities as a heat map and returns the matplotlib `Figure`.

    Args:
      images: the N images of the rows, as anything `load_image` takes; transparent ones are shown on white.
      labels: the M names of the columns; very long ones are shortened.
      scores: probabilities, drawn on a fixed scale from 0 to 1.
      path: where to write the image too; its ending chooses the format.

    Raises:
      ValueError: if matplotlib is missing, the sizes do not match or exceed `MOST`, or the ending is unknown.
    """
    check_plot(path, len(scores), len(labels))
    thumbnails = [thumbnail(image) for image in images]
    if scores.shape != (len(thumbnails), len(labels)):
        expected = (len(thumbnails), len(labels))
        raise ValueError(f"scores must be (images, labels) = {expected}, got shape {scores.shape}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = scores.shape
    cell = 0.72 if max(rows, columns) <= 12 else 0.46  # inches
    figure = Figure(figsize=(cell * (columns + 1), cell * rows), dpi=110)
    FigureCanvasAgg(figure)
    # Thumbnails are a column of cells of their own, so that they meet their rows whatever the size.
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(-1.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    mesh = axes.pcolormesh(
        np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, scores, vmin=0, vmax=1, cmap="viridis", lw=0
    )
    for row, drawn in enumerate(thumbnails):
        axes.imshow(drawn, extent=(-1.44, -0.56, row + 0.44, row - 0.44), interpolation="antialiased")
        for column in range(columns):
            score = scores[row, column]
            ink = "black" if score > 0.6 else "white"
            axes.text(column, row, _number(float(score)), ha="center", va="center", color=ink, fontsize=cell * 14)
    axes.set_xlim(-1.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_aspect("auto")
    axes.xaxis.tick_top()
    slant: dict[str, Any] = dict(rotation=45, ha="left", va="bottom", rotation_mode="anchor", parse_math=False)
    axes.set_xticks(range(columns), [shortened(label) for label in labels], fontsize=max(cell * 14, 8), **slant)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.set_frame_on(False)
    bar = figure.add_axes((1 + 0.25 / (columns + 1), max(0, 1 - 4 / rows), 0.2 / (columns + 1), min(1, 4 / rows)))
    figure.colorbar(mesh, cax=bar, ticks=[0, 0.5, 1]).ax.tick_params(labelsize=8, length=2)
    if path is not None:
        write_atomically(Path(path), render(figure, Path(path).suffix[1:].lower()))
    return figure


def _number(score: float) -> str:
    if np.isnan(score):
        return "–"
    return f"{score:.2f}" if score >= 0.005 else "0"
