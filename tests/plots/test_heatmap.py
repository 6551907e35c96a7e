"""The heat map of a similarity matrix."""

import io

import numpy as np
import PIL.Image
import pytest

from siglip_jax.plots.canvas import check_plot, render
from siglip_jax.plots.heatmap import plot_similarity
from tests.support.tiny_checkpoint import picture

pytest.importorskip("matplotlib")


def shape(rows: int, columns: int):
    rng = np.random.default_rng(rows * 100 + columns)
    scores = rng.uniform(0.01, 1, size=(rows, columns)).astype(np.float32)
    return [picture(i) for i in range(rows)], [f"label {i}" for i in range(columns)], scores


def test_a_label_that_is_not_utf8_is_drawn_as_escapes():
    figure = plot_similarity([PIL.Image.new("RGB", (8, 8))], ["caf\udce9"], np.array([[0.5]]))
    assert figure.axes[0].get_xticklabels()[0].get_text() == r"caf\udce9"
    assert render(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 12), (12, 1), (20, 5)])
def test_every_score_is_printed_in_its_cell(rows, columns, tmp_path):
    images, labels, scores = shape(rows, columns)
    path = tmp_path / "plot.png"
    figure = plot_similarity(images, labels, scores, path)
    axes = figure.axes[0]
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    assert numbers == {(m, n): f"{scores[n, m]:.2f}" for n in range(rows) for m in range(columns)}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == labels
    (mesh,) = axes.collections
    np.testing.assert_array_equal(mesh.get_array(), scores)
    assert mesh.get_clim() == (0, 1)
    assert len(axes.images) == rows
    with PIL.Image.open(path) as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) > 60
    assert list(tmp_path.iterdir()) == [path]


def test_small_scores_are_printed_with_their_digits_and_told_apart_by_colour():
    scores = np.array([[0.031, 0.0042, 0.00042, 0.0], [0.0095, 0.00096, 4.4e-7, np.nan]])
    figure = plot_similarity([picture(0), picture(1)], list("abcd"), scores)
    axes, bar = figure.axes
    assert [text.get_text() for text in axes.texts] == ["0.03", "0.0042", "4e-4", "0", "0.01", "0.00096", "4e-7", "–"]
    (mesh,) = axes.collections
    assert mesh.get_clim() == pytest.approx((0, 0.05))
    assert [tick.get_text() for tick in bar.get_yticklabels()] == ["0", "0.025", "0.05"]
    assert [text.get_color() for text in axes.texts[:2]] == ["black", "white"]


def test_labels_of_any_kind_fit():
    labels = ["$x$ & $y", "a\nb", "\u732b \U0001f431", "x" * 300, "a very long label " * 9]
    figure = plot_similarity([picture(0)], labels, np.full((1, 5), 0.5, np.float32))
    with PIL.Image.open(io.BytesIO(render(figure))) as drawn:
        assert drawn.height < 900
        assert drawn.width < 1200


def test_transparent_thumbnails_are_on_white():
    clear = PIL.Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    figure = plot_similarity([clear], ["a"], np.zeros((1, 1), np.float32))
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), np.full((8, 8, 3), 255))


@pytest.mark.parametrize(
    ("path", "rows", "columns", "words"),
    [
        ("out.xyz", 1, 1, "the ending of a plot must be one of .png .pdf .svg .jpg .jpeg .webp, got '.xyz'"),
        ("no/such/folder/out.png", 1, 1, "no such folder"),
        ("out.png", 200, 1, "1 to 128 images and labels, got 200"),
        ("out.png", 1, 0, "0 labels"),
    ],
)
def test_what_cannot_be_drawn_is_refused_at_once(tmp_path, path, rows, columns, words):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        check_plot(tmp_path / path, rows, columns)
    assert words in str(caught.value)


def test_sizes_must_match():
    with pytest.raises(ValueError, match=r"\(images, labels\) = \(1, 2\), got shape \(2, 2\)"):
        plot_similarity([picture(0)], ["a", "b"], np.zeros((2, 2), np.float32))


def test_a_plot_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("siglip_jax.plots.heatmap.render", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plot_similarity([picture(0)], ["a"], np.zeros((1, 1), np.float32), tmp_path / "out.png")
    assert list(tmp_path.iterdir()) == []
