"""Plots of the mistakes of an evaluation: the classes of lowest recall, and the results of retrieval queries."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from siglip_jax._files import write_atomically
from siglip_jax.data.example import Source
from siglip_jax.evaluation.neighbours import nearest_keys
from siglip_jax.evaluation.result import Result
from siglip_jax.plots.canvas import check_plot, render, shortened, thumbnail

CLASSES, CONFUSED = 8, 4  # classes shown, and the most that each is confused with
QUERIES, FOUND = 8, 5  # texts shown, and images that each finds
RIGHT, WRONG = "#1a9850", "#d73027"  # colours of frames
CELL, ROW = 1.0, 1.15  # width and height of a cell, in inches
HALF = 0.43  # half the width of an image, in cells


def plot_evaluation(result: Result, source: Source, path: str | os.PathLike[str] | None = None) -> Any:
    """Draws the mistakes of an evaluation.

    Of a classification the plot shows the eight classes of lowest recall: an image of each, a misclassified one if
    there is one, and the classes it is confused with, with an example of each. Of a retrieval it shows eight texts
    and the images nearest to them, with a frame around the right one.

    Args:
      result: result of `evaluate_zero_shot`, `knn`, `linear_probe` or `evaluate_retrieval`.
      source: source of the images that were evaluated.
      path: file to write the plot to, ending in .png, .pdf, .svg, .jpg, .jpeg or .webp; None: the plot is not written.

    Returns:
      A matplotlib `Figure`, drawn without pyplot.

    Raises:
      FileNotFoundError: if the folder of `path` does not exist.
      ValueError: if matplotlib is not installed, or `path` cannot be written or has an unknown ending.

    Example:
      >>> import siglip_jax
      >>> from siglip_jax.data import Example
      >>> from siglip_jax.evaluation import evaluate_zero_shot
      >>> class Two:
      ...     classes = ("horse", "lemon")
      ...     def __len__(self): return 2
      ...     def __getitem__(self, index):
      ...         file = siglip_jax.assets.EXAMPLES / f"{self.classes[index]}.png"
      ...         return Example(file.read_bytes(), (), index, file.name)
      >>> result = evaluate_zero_shot(siglip_jax.load(), Two())
      >>> figure = plot_evaluation(result, Two())
      >>> figure.axes[0].get_title(loc="left")
      'zero-shot: 100.0% right; the 2 classes, lowest recall first'
    """
    check_plot(path, 1, 1)
    figure = _retrieval(result, source) if result.accuracy is None else _confusions(result, source)
    if path is not None:
        write_atomically(Path(path), render(figure, Path(path).suffix[1:].lower()))
    return figure


def _confusions(result: Result, source: Source) -> Any:
    """Draws the classes of lowest recall, and those that each is confused with."""
    found = result.accuracy
    assert found is not None and result.ranked is not None
    worst = found.worst[:CLASSES].tolist()
    predicted = result.ranked[:, 0]
    confused = {label: [(b, n) for a, b, n in found.confusions.tolist() if a == label][:CONFUSED] for label in worst}
    columns = 1 + max(map(len, confused.values()))
    figure, axes = _canvas(len(worst), columns, left=2.0)
    of = "" if len(worst) == len(result.classes) else f" of {len(result.classes)}"
    head = f"{result.task}: {found.top1:.1%} right; the {len(worst)}{of} classes, lowest recall first"
    axes.set_title(head, loc="left", fontsize=11, pad=18, x=-2.0 / columns)
    axes.text(0, -0.47, "an image of it", ha="center", fontsize=8, color="grey")
    if columns > 1:
        axes.text(1, -0.47, "taken for", ha="center", fontsize=8, color="grey")
    for row, label in enumerate(worst):
        own = np.flatnonzero(result.labels == label)
        wrong = own[predicted[own] != label]
        name = shortened(result.classes[label], 22)
        right, count = len(own) - len(wrong), int(found.counts[label])
        axes.text(-0.6, row, f"{name}\n{right} of {count} right", ha="right", va="center", fontsize=9, parse_math=False)
        _draw(axes, source, result, int((wrong if len(wrong) else own)[0]), row, 0, WRONG if len(wrong) else RIGHT)
        for column, (other, times) in enumerate(confused[label], 1):
            examples = np.flatnonzero(result.labels == other)
            if len(examples):
                _draw(axes, source, result, int(examples[0]), row, column)
            caption = f"{shortened(result.classes[other], 16, 1)}, {times}"
            axes.text(column, row + 0.45, caption, ha="center", va="center", fontsize=6.5, parse_math=False)
    return figure


def _retrieval(result: Result, source: Source) -> Any:
    """Draws texts and the images nearest to each."""
    assert result.image_embeds is not None and result.text_embeds is not None
    shown = [i * len(result.texts) // QUERIES for i in range(QUERIES)] if len(result.texts) > QUERIES else None
    queries = np.arange(len(result.texts)) if shown is None else np.array(shown)
    k = min(FOUND, len(result.image_embeds))
    near = nearest_keys(result.text_embeds[queries], result.image_embeds, k)[1]
    figure, axes = _canvas(len(queries), k + 1, left=2.6)
    recall = result.metrics.get("text_to_image_r1")
    head = "retrieval" if recall is None else f"retrieval: {recall:.1%} of the texts find their image first"
    axes.set_title(head, loc="left", fontsize=11, pad=18, x=-2.6 / (k + 1))
    axes.text(k, -0.47, "the right one", ha="center", fontsize=8, color="grey")
    for row, query in enumerate(queries.tolist()):
        own = int(result.labels[query])
        text = shortened(result.texts[query], 26, 4)
        axes.text(-0.6, row, text, ha="right", va="center", fontsize=9, parse_math=False)
        for column, position in enumerate(near[row].tolist()):
            _draw(axes, source, result, position, row, column, RIGHT if position == own else None)
        if own not in near[row]:
            _draw(axes, source, result, own, row, k, WRONG)
            similarity = result.image_embeds @ result.text_embeds[query]
            place = int((similarity >= similarity[own]).sum())
            axes.text(k, row + 0.45, f"place {place}", ha="center", va="center", fontsize=6.5)
    return figure


def _canvas(rows: int, columns: int, left: float) -> tuple[Any, Any]:
    """Returns a matplotlib `Figure` and axes whose unit is a cell, with `left` inches for words at the left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(CELL * (columns + left), ROW * rows), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((left / (columns + left), 0, columns / (columns + left), 1))
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_axis_off()
    return figure, axes


def _draw(
    axes: Any, source: Source, result: Result, position: int, row: int, column: int, frame: str | None = None
) -> None:
    """Draws the image at a position of the result, with a frame of a colour; None: a thin grey frame."""
    from matplotlib.patches import Rectangle

    image = source[int(result.numbers[position])].image
    drawn = thumbnail(image if isinstance(image, bytes) else PIL.Image.fromarray(image))
    high = HALF * CELL / ROW
    axes.imshow(drawn, extent=(column - HALF, column + HALF, row + high, row - high), interpolation="antialiased")
    line: dict[str, Any] = {"edgecolor": frame or "#cccccc", "linewidth": 2.5 if frame else 0.5}
    axes.add_patch(Rectangle((column - HALF, row - high), 2 * HALF, 2 * high, fill=False, **line))
    axes.set_aspect("auto")
