"""The plot of a calibration: probabilities beside the shares that turned out right, before and after."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from siglip_jax._files import write_atomically
from siglip_jax.evaluation.calibrate import Calibrated
from siglip_jax.plots.canvas import check_plot, render

BEFORE, AFTER = "#d95f02", "#1f78b4"  # colours


def plot_reliability(calibrated: Calibrated, path: str | os.PathLike[str] | None = None) -> Any:
    """Draws how far the probabilities of a calibration can be trusted, on its held-out images.

    On the left are the bins of the expected calibration error, of all pairs of image and label and of the best label of
    each image: on the diagonal a probability is the share that turns out right. On the right are the probabilities of
    the right labels, with the threshold.

    Args:
      calibrated: result of `siglip_jax.evaluation.calibrate`.
      path: file to write the plot to, ending in .png, .pdf, .svg, .jpg, .jpeg or .webp; None: the plot is not written.

    Returns:
      A matplotlib `Figure`, drawn without pyplot.

    Raises:
      FileNotFoundError: if the folder of `path` does not exist.
      ValueError: if matplotlib is not installed, or `path` cannot be written or has an unknown ending.

    Example:
      >>> import siglip_jax
      >>> from siglip_jax.data import Example
      >>> from siglip_jax.evaluation import calibrate
      >>> class Pictograms:
      ...     classes = ("bicycle", "church", "cow", "horse", "lemon", "pizza")
      ...     def __len__(self): return 6
      ...     def __getitem__(self, index):
      ...         file = siglip_jax.assets.EXAMPLES / f"{self.classes[index]}.png"
      ...         return Example(file.read_bytes(), (), index, file.name)
      >>> figure = plot_reliability(calibrate(siglip_jax.load(), Pictograms()))
      >>> [axes.get_title() for axes in figure.axes]
      ['all pairs', 'best label of each image', 'right labels']
    """
    check_plot(path, 1, 1)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    pairs, best, right = figure.subplots(1, 3)
    half = calibrated.held_out
    sides = ((half.before, "before", BEFORE, "s"), (half.after, "after", AFTER, "o"))
    for axes, name, title in ((pairs, "pairs", "all pairs"), (best, "best", "best label of each image")):
        top, bins = 0.0, len(getattr(half.after, name).counts)
        for quality, when, colour, marker in sides:
            found = getattr(quality, name)
            label = f"{when}: ECE {100 * found.error:.2g} %"
            axes.plot(found.probabilities, found.shares, color=colour, marker=marker, ms=5, lw=1.2, label=label)
            top = max(top, np.nanmax(found.probabilities), np.nanmax(found.shares))
        top = min(1.0, 1.25 * top)  # among many labels hardly any pair is likely
        axes.plot([0, top], [0, top], color="grey", lw=1, ls="--", zorder=0)
        limits = -0.03 * top, 1.03 * top
        axes.set(title=title, xlabel=f"mean probability of a bin ({bins} bins of equal mass)")
        axes.set(ylabel="share that is right", xlim=limits, ylim=limits, aspect="equal")
        axes.legend(fontsize=9)
    shown = [quality.matching for quality, *_ in sides]
    right.hist(
        shown,
        np.linspace(0, 1, 11),
        weights=[np.full(len(x), 1 / len(x)) for x in shown],
        color=[BEFORE, AFTER],
        label=[f"{when}: {quality.above_half:.0%} above one half" for quality, when, *_ in sides],
    )
    if (threshold := calibrated.calibration.threshold) is not None:
        right.axvline(threshold, color=AFTER, lw=1.2, ls=":", label=f"threshold {threshold:.3g}")
    right.set(title="right labels", xlabel="probability of the right label", ylabel="share of the images", xlim=(0, 1))
    right.legend(fontsize=9)
    count = f"{half.examples:,} held-out images, {len(calibrated.calibration.labels):,} labels"
    figure.suptitle(f"{count}, {calibrated.calibration.model}", fontsize=11, parse_math=False)
    if path is not None:
        write_atomically(Path(path), render(figure, Path(path).suffix[1:].lower()))
    return figure
