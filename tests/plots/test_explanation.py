"""Plots of explanations and diagnoses: every map is drawn where it belongs."""

import numpy as np
import PIL.Image
import pytest

from siglip_jax.inference import Diagnosis, Explanation, Spot
from siglip_jax.plots import plot_diagnosis, plot_explanation
from tests.support.tiny_checkpoint import picture

pytest.importorskip("matplotlib")
WHOLE = (0.0, 0.0, 1.0, 1.0)
WIDE = PIL.Image.fromarray(picture(1, (120, 60)))
SQUARE = np.full((60, 60, 3), 200, np.uint8)


def explanation(texts: int, occlusion: bool = True, method: str = "occlusion") -> Explanation:
    maps = np.random.default_rng(0).uniform(size=(texts, 2, 4)).astype(np.float32)
    numbers = np.linspace(0.1, 0.9, texts).astype(np.float32)
    drops = maps + 2 if occlusion else None
    names = tuple(f"text {i} with $x^" for i in range(texts))
    return Explanation(names, method, maps[:1] / maps[:1].sum(), maps, maps + 1, drops, numbers, numbers, WHOLE)


def test_a_row_for_each_text_with_every_map_and_its_place(tmp_path):
    shown = explanation(3)
    figure = plot_explanation(WIDE, shown, tmp_path / "maps.png")
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 3 * 5
    for row, axes in enumerate(panels[::5]):
        (line,) = axes.lines
        y, x = shown.centres()[row]
        np.testing.assert_allclose(line.get_xydata()[0], (x, y))
        assert axes.get_xlabel().startswith(f"text {row} with $x^") and not axes.get_ylabel()
    titles = [axes.get_title().split("\n")[0] for axes in panels[:5]]
    assert titles[0] == "image" and titles[1] == "occlusion"
    assert set(titles) == {"image", "occlusion", "value path", "pooling attention", "last hidden state"}
    drawn = panels[1].images[1]
    np.testing.assert_allclose(drawn.get_array(), shown.resized(60, 120)[0], rtol=1e-6)
    with PIL.Image.open(tmp_path / "maps.png") as saved:
        assert saved.format == "PNG" and saved.width > saved.height


def test_without_occlusion_the_value_path_comes_first():
    figure = plot_explanation(SQUARE, explanation(1, occlusion=False, method="value"))
    assert figure.axes[0].get_ylabel().startswith("text 0 with $x^")  # beside an image that is high enough
    titles = [axes.get_title().split("\n")[0] for axes in figure.axes if axes.images]
    assert titles[:2] == ["image", "value path"] and "occlusion" not in titles


def test_a_diagnosis_frames_what_stands_out(tmp_path):
    attention = np.full((4, 4), 1 / 16, np.float32)
    numbers = np.array([1.0, 2.0, 4.0], np.float32)
    spots = (Spot(1, 2, 9.0),)
    fixed = (Spot(3, 0, 4.0), Spot(0, 0, 3.5))
    found = Diagnosis("model", 9, attention, spots, attention, attention, 0.4, fixed, numbers, numbers, numbers, ())
    figure = plot_diagnosis(found, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 5_000
    frames = [[patch.get_xy() for patch in axes.patches] for axes in figure.axes[:3]]
    assert frames == [[(1.5, 0.5)], [(-0.5, 2.5), (-0.5, -0.5)], []]
    median, largest, _ = (line.get_ydata() for line in figure.axes[3].lines)
    np.testing.assert_allclose(median, numbers)
    np.testing.assert_allclose(largest, numbers**2)
    headless = Diagnosis("model", 9, attention, (), None, None, None, (), numbers, numbers, numbers, ())
    assert len(plot_diagnosis(headless).axes) == 3  # the table, its scale, and the norms
    with pytest.raises(ValueError, match="the ending of a plot must be one of"):
        plot_diagnosis(found, tmp_path / "plot.txt")
