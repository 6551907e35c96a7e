"""A heat map of the image x label matrix: thumbnails beside the rows, labels above the columns, colours for values.

matplotlib is imported only when a plot is drawn, and never through pyplot, so no window system is needed.
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
    """Draws the probabilities of images and labels as a heat map.

    Args:
      images: N images for the rows: paths, URLs, bytes, PIL images or arrays, as `siglip_jax.processing.load_image`
        takes them; transparent ones are shown on white.
      labels: M names for the columns; long ones are shortened.
      scores: probabilities, (N, M) float, drawn on a scale from 0 to 1, or, if none reaches 0.1, to 0.1, 0.05, 0.02 and
        so on, whichever just holds them. Those below 0.01 are printed with two digits, those below 0.001 with one.
      path: file to write the plot to, ending in .png, .pdf, .svg, .jpg, .jpeg or .webp; None: the plot is not written.

    Returns:
      A matplotlib `Figure`, drawn without pyplot.

    Raises:
      FileNotFoundError: if an image or the folder of `path` does not exist.
      ValueError: if matplotlib is not installed, the sizes do not match or are not from 1 to 128, an image cannot be
        read, or `path` cannot be written or has an unknown ending.

    Example:
      >>> import siglip_jax
      >>> images = [siglip_jax.assets.EXAMPLES / f"{name}.png" for name in ("horse", "lemon")]
      >>> scores = np.array([[0.9, 0.0, 0.1], [0.0, 0.8, 0.2]])
      >>> figure = plot_similarity(images, ["horse", "lemon", "fruit"], scores)
      >>> [text.get_text() for text in figure.axes[0].texts]
      ['0.90', '0', '0.10', '0', '0.80', '0.20']
    """
    check_plot(path, len(scores), len(labels))
    thumbnails = [thumbnail(image) for image in images]
    if scores.shape != (len(thumbnails), len(labels)):
        expected = (len(thumbnails), len(labels))
        raise ValueError(f"scores must be (images, labels) = {expected}, got shape {scores.shape}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = scores.shape
    top = _top(scores)
    cell = 0.72 if max(rows, columns) <= 12 else 0.46  # inches
    figure = Figure(figsize=(cell * (columns + 1), cell * rows), dpi=110)
    FigureCanvasAgg(figure)
    # Thumbnails are a column of cells, so that they are aligned with their rows at any size.
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(-1.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    mesh = axes.pcolormesh(
        np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, scores, vmin=0, vmax=top, cmap="viridis", lw=0
    )
    for row, drawn in enumerate(thumbnails):
        axes.imshow(drawn, extent=(-1.44, -0.56, row + 0.44, row - 0.44), interpolation="antialiased")
        for column in range(columns):
            score = scores[row, column]
            ink = "black" if score > 0.6 * top else "white"
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
    figure.colorbar(mesh, cax=bar, ticks=[0, top / 2, top], format="{x:g}").ax.tick_params(labelsize=8, length=2)
    if path is not None:
        write_atomically(Path(path), render(figure, Path(path).suffix[1:].lower()))
    return figure


def _number(score: float) -> str:
    """Returns a probability as the text of its cell."""
    if np.isnan(score):
        return "–"
    if score >= 0.0095 or score == 0:
        return f"{score:.2f}" if score else "0"
    return f"{score:.2g}" if score >= 0.00095 else f"{score:.0e}".replace("e-0", "e-")


def _top(scores: np.ndarray) -> float:
    """Returns the end of the scale of colours: 1, or the smallest of 0.1, 0.05, 0.02, 0.01, … that holds all scores."""
    largest = float(np.nanmax(scores, initial=0))
    if not 0 < largest < 0.1:
        return 1.0
    power = 10.0 ** np.floor(np.log10(largest))
    return float(next(step * power for step in (1, 2, 5, 10) if largest <= step * power * (1 + 1e-6)))
