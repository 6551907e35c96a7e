"""Plots of results: they show the right images, and unknown endings are refused in time."""

import PIL.Image
import pytest

from siglip_jax.evaluation import evaluate_retrieval, evaluate_zero_shot, knn
from siglip_jax.plots.evaluation import CLASSES, QUERIES, RIGHT, WRONG, plot_evaluation
from tests.support.sources import Listed, pictograms

pytest.importorskip("matplotlib")


def frames(figure) -> list[str]:
    import matplotlib.colors

    colors = [matplotlib.colors.to_hex(patch.get_edgecolor()) for patch in figure.axes[0].patches]
    return [color for color in colors if color in (RIGHT, WRONG)]


def words(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.slow
def test_worst_classes(siglip, tmp_path):
    source = pictograms()
    result = evaluate_zero_shot(siglip, source)
    figure = plot_evaluation(result, source, tmp_path / "worst.png")
    with PIL.Image.open(tmp_path / "worst.png") as drawn:
        assert drawn.format == "PNG" and drawn.height > drawn.width > 300
    assert frames(figure) == [WRONG] * CLASSES
    first = result.accuracy.worst[0]
    assert f"{source.classes[first]}\n0 of 1 right" in words(figure)
    assert "taken for" in words(figure)
    (taken,) = [b for a, b, _ in result.accuracy.confusions.tolist() if a == first]
    assert any(source.classes[taken].startswith(word.split(" …")[0].split(",")[0]) for word in words(figure))
    assert len(figure.axes[0].images) == 2 * CLASSES


@pytest.mark.slow
def test_nothing_wrong_and_few_classes(siglip):
    source = pictograms()
    few = Listed(source.examples[:2], source.classes[:2])
    figure = plot_evaluation(knn(siglip, few, few, k=1), few)
    assert frames(figure) == [RIGHT] * 2
    assert "taken for" not in words(figure)


@pytest.mark.slow
def test_what_texts_find(siglip, tmp_path):
    source = pictograms()
    result = evaluate_retrieval(siglip, source)
    figure = plot_evaluation(result, source, tmp_path / "found.svg")
    assert (tmp_path / "found.svg").stat().st_size > 10_000
    assert len(frames(figure)) == QUERIES  # each right image once, among the first or at the side
    asked = [source.classes[i * 8] for i in range(8)]
    assert [word for word in words(figure) if word in asked] == asked
    two = Listed([source.examples[0]._replace(texts=("$x^", "a $bomb")), source.examples[1]])
    assert len(plot_evaluation(evaluate_retrieval(siglip, two), two).axes[0].images) == 3 * 2


@pytest.mark.slow
def test_an_unknown_ending_is_refused(siglip, tmp_path):
    source = Listed(pictograms().examples[:2])
    with pytest.raises(ValueError, match="the ending of a plot must be one of .*, got '.txt'"):
        plot_evaluation(evaluate_retrieval(siglip, source), source, tmp_path / "x.txt")
