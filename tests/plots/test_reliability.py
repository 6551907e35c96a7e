"""The plot of a calibration shows the bins and the probabilities of the held-out images."""

import numpy as np
import PIL.Image
import pytest

import siglip_jax
from siglip_jax.evaluation import calibrate
from siglip_jax.plots.reliability import plot_reliability
from tests.support.sources import pictograms

pytest.importorskip("matplotlib")


@pytest.mark.slow
def test_the_lines_are_the_bins_and_the_bars_the_right_labels(tmp_path):
    found = calibrate(siglip_jax.load(), pictograms())
    figure = plot_reliability(found, tmp_path / "reliability.png")
    pairs, best, right = figure.axes
    half = found.held_out
    for axes, name in ((pairs, "pairs"), (best, "best")):
        for line, quality in zip(axes.lines, (half.before, half.after), strict=False):
            np.testing.assert_array_equal(line.get_xdata(), getattr(quality, name).probabilities)
            np.testing.assert_array_equal(line.get_ydata(), getattr(quality, name).shares)
    for bars, quality in zip(right.containers, (half.before, half.after), strict=True):
        counts, _ = np.histogram(quality.matching, np.linspace(0, 1, 11))
        np.testing.assert_allclose([bar.get_height() for bar in bars], counts / 32)
    assert right.lines[0].get_xdata()[0] == found.calibration.threshold
    assert "32 held-out images, 64 labels, this model" in figure.get_suptitle()
    with PIL.Image.open(tmp_path / "reliability.png") as drawn:
        assert drawn.format == "PNG" and drawn.width > 2 * drawn.height
    with pytest.raises(ValueError, match="the ending of a plot must be one of"):
        plot_reliability(found, tmp_path / "reliability.txt")
