"""A plot of an explanation: the image, where the pooling head looks, and the maps of each text."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from siglip_jax._files import write_atomically
from siglip_jax.inference.explain import Explanation
from siglip_jax.plots.canvas import check_plot, render, shortened
from siglip_jax.processing import load_image

LARGEST = 320  # width and height of a drawn image in pixels
SIDE = 2.1  # width and height of a panel in inches
MARK = "#ff2d95"  # of the place that a map points to
TITLES = {
    "attention": "pooling attention\n(the same for all texts)",
    "value": "value path\ncosine",
    "raw": "last hidden state\ncosine; no explanation",
    "occlusion": "occlusion\ndrop of the cosine",
}
DIVERGING = {"occlusion"}  # maps whose sign says for or against; white is 0


def plot_explanation(image: Any, explanation: Explanation, path: str | os.PathLike[str] | None = None) -> Any:
    """Draws the maps of an explanation over the image, a row for each text.

    The cross marks the place that `explanation.centres()` returns.

    Args:
      image: the image that was explained: path, URL, bytes, PIL image or array; a transparent one is shown on white.
      explanation: its maps, as from `siglip_jax.explain`.
      path: file to write the plot to, ending in .png, .pdf, .svg, .jpg, .jpeg or .webp; None: the plot is not written.

    Returns:
      A matplotlib `Figure`, drawn without pyplot.

    Raises:
      FileNotFoundError: if the image or the folder of `path` does not exist.
      ValueError: if matplotlib is not installed, there are more than 128 texts, the image cannot be read, or `path`
        cannot be written or has an unknown ending.

    Example:
      >>> import siglip_jax
      >>> image = siglip_jax.assets.EXAMPLES / "horse.png"
      >>> figure = plot_explanation(image, siglip_jax.explain(image, ["horse", "lemon"]))
      >>> figure.axes[0].get_title(), len([axes for axes in figure.axes if axes.images])
      ('image', 10)
    """
    check_plot(path, len(explanation.texts), 1)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = _on_white(image)
    height, width = drawn.shape[:2]
    names = [name for name in TITLES if name != "occlusion" or explanation.occlusion is not None]
    names.sort(key=lambda name: name != explanation.method)
    rows, columns = len(explanation.texts), len(names) + 1
    panel = SIDE * min(width / height, 1.6), SIDE * min(width / height, 1.6) * height / width
    figure = Figure(
        figsize=((panel[0] + 0.75) * columns, (panel[1] + 0.25) * rows + 0.6), dpi=110, layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    centres = explanation.centres()
    resized = {name: explanation.resized(height, width, name) for name in names}
    for row, text in enumerate(explanation.texts):
        first = grid[row, 0]
        first.imshow(drawn, extent=(0, 1, 1, 0), aspect="auto")
        y, x = centres[row]
        first.plot([x], [y], marker="+", color=MARK, markersize=11, markeredgewidth=2)
        score = f"p = {explanation.scores[row]:.2g}, cosine {explanation.similarity[row]:.2f}"
        # Beside the image where it is high enough, else below.
        label = first.set_ylabel if height > 0.6 * width else first.set_xlabel
        label(f"{shortened(text, 22)}\n{score}", fontsize=9, parse_math=False)
        for column, name in enumerate(names, 1):
            axes = grid[row, column]
            axes.imshow(_grey(drawn), extent=(0, 1, 1, 0), cmap="gray", vmin=0, vmax=1, aspect="auto")
            values = resized[name][row]
            shown = axes.imshow(values, extent=(0, 1, 1, 0), alpha=0.75, aspect="auto", **_colours(name, values))
            # Beside the panel at its height, which a scale of the layout's own would not keep.
            scale = axes.inset_axes((1.02, 0, 0.045, 1))
            figure.colorbar(shown, cax=scale).ax.tick_params(labelsize=7, length=2)
        if not row:
            first.set_title("image", fontsize=9)
            for column, name in enumerate(names, 1):
                grid[row, column].set_title(TITLES[name], fontsize=9)
    for axes in grid.flat:
        axes.set_box_aspect(height / width)
        axes.set_xlim(0, 1)
        axes.set_ylim(1, 0)
        axes.set_xticks([])
        axes.set_yticks([])
    if path is not None:
        write_atomically(Path(path), render(figure, Path(path).suffix[1:].lower()))
    return figure


def _colours(name: str, values: np.ndarray) -> dict[str, Any]:
    """Returns the colours of a map."""
    if name not in DIVERGING:
        return {"cmap": "viridis", "vmin": 0 if name == "attention" else None}
    most = float(np.nanmax(np.abs(values))) or 1.0
    return {"cmap": "RdBu_r", "vmin": -most, "vmax": most}


def _on_white(image: Any) -> np.ndarray:
    """Returns an image on white, at most `LARGEST` pixels wide and high, (height, width, 3) uint8."""
    loaded = load_image(image).convert("RGBA")
    loaded.thumbnail((LARGEST, LARGEST))
    canvas = PIL.Image.new("RGBA", loaded.size, "white")
    canvas.alpha_composite(loaded)
    return np.asarray(canvas.convert("RGB"))


def _grey(image: np.ndarray) -> np.ndarray:
    """Returns the brightness of an image, from 0 to 1."""
    return image @ np.array([0.299, 0.587, 0.114]) / 255
