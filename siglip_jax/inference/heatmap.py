"""A picture of the image x label matrix: thumbnails beside the rows, labels above the columns, probabilities as colour.

matplotlib is imported only when a picture is drawn, and never through pyplot, so no window system is touched.
"""

import io
import os
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float, UInt8

from siglip_jax.files import write_atomically
from siglip_jax.processing import load_image

MOST = 128  # rows or columns: beyond, the numbers could not be read in any picture of sensible size
FORMATS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")
THUMBNAIL = 96  # pixels


def plot_similarity(
    images: Iterable[Any],
    labels: Sequence[str],
    scores: Float[np.ndarray, "images labels"],
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """Draws probabilities as a heat map and returns the matplotlib `Figure`.

    Args:
      images: the N pictures of the rows, as anything `load_image` takes; transparent ones are shown on white.
      labels: the M names of the columns; very long ones are shortened.
      scores: probabilities, drawn on a fixed scale from 0 to 1.
      path: where to write the picture too; its ending chooses the format.

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
    for row, picture in enumerate(thumbnails):
        axes.imshow(picture, extent=(-1.44, -0.56, row + 0.44, row - 0.44), interpolation="antialiased")
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


def render(figure: Any, format: str = "png") -> bytes:
    """Returns a figure as the bytes of a file, with its labels inside."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # letters that the font lacks become boxes; no news for whoever wrote the labels
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format=format, bbox_inches="tight", pad_inches=0.1)
    return buffer.getvalue()


def check_plot(path: str | os.PathLike[str] | None, rows: int, columns: int) -> None:
    """Refuses what cannot be drawn before anything is computed.

    Raises:
      FileNotFoundError: if the folder of `path` is not there.
      ValueError: if matplotlib is missing, there is nothing or too much to draw, or `path` has an unknown ending.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("a plot needs matplotlib, which is not installed: pip install 'siglip_jax[plot]'") from None
    if not 1 <= rows <= MOST or not 1 <= columns <= MOST:
        raise ValueError(f"a plot shows 1 to {MOST} pictures and labels, got {rows} pictures and {columns} labels")
    if path is not None:
        check_file(Path(path), FORMATS)


def check_file(path: Path, formats: Sequence[str]) -> None:
    """Refuses a file that cannot be drawn into; raises what `check_plot` does."""
    if path.suffix.lower() not in formats:
        raise ValueError(f"{path}: expected a plot ending in one of {' '.join(formats)}, found {path.suffix!r}")
    if path.is_dir():
        raise ValueError(f"{path}: expected a file to write the plot to, found a folder; add a name such as plot.png")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: no such folder as {path.parent} to write the plot to; make it first")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path}: expected a folder that can be written to, found {path.parent}; choose another")


def thumbnail(image: Any, side: int = THUMBNAIL) -> UInt8[np.ndarray, "side side 3"]:
    """Returns a picture, on white, in the middle of a square of at most `side` pixels."""
    picture = load_image(image).convert("RGBA")
    picture.thumbnail((side, side))
    canvas = PIL.Image.new("RGBA", (max(picture.size),) * 2, "white")
    corner = tuple((side - own) // 2 for side, own in zip(canvas.size, picture.size, strict=True))
    canvas.alpha_composite(picture, corner)
    return np.asarray(canvas.convert("RGB"))


def shortened(label: str, width: int = 30, lines: int = 2) -> str:
    """Returns a label broken into lines, the last of which ends in dots where it was longer."""
    return "\n".join(textwrap.wrap(label, width, max_lines=lines, placeholder=" …"))


def _number(score: float) -> str:
    if np.isnan(score):
        return "–"
    return f"{score:.2f}" if score >= 0.005 else "0"
