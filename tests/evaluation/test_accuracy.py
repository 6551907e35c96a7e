"""Metrics of a classification, on hand-written predictions."""

import numpy as np
import pytest

from siglip_jax.evaluation.accuracy import accuracy
from siglip_jax.evaluation.zero_shot import classify
from siglip_jax.inference.labels import ensemble


def test_by_hand():
    ranked = np.array([[0, 1], [1, 0], [1, 2], [1, -1], [2, 1], [2, 0]])
    found = accuracy(ranked, np.array([0, 0, 1, 2, 1, 1]), 4)
    assert found.top1 == 2 / 6
    assert found.top5 == 4 / 6
    np.testing.assert_array_equal(found.per_class, [1 / 2, 1 / 3, 0, np.nan])
    assert found.mean_per_class == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)
    assert found.counts.tolist() == [2, 3, 1, 0]
    assert found.confusions.tolist() == [[1, 2, 2], [0, 1, 1], [2, 1, 1]]
    assert found.worst.tolist() == [2, 1, 0]


def test_all_right_has_no_confusions():
    found = accuracy(np.array([[1], [0]]), np.array([1, 0]), 2)
    assert (found.top1, found.confusions.shape) == (1.0, (0, 3))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "images with a label must be one or more, got none"),
        ([0, 2], "labels must be from 0 to 1, got 0 to 2"),
        ([-1, 0], "labels must be from 0 to 1, got -1 to 0"),
    ],
)
def test_labels_that_are_no_classes(labels, message):
    with pytest.raises(ValueError, match=message):
        accuracy(np.zeros((len(labels), 1), int), np.array(labels, int), 2)


class TestZeroShot:
    def test_ensemble_is_the_normalised_mean_of_normalised_embeddings(self):
        texts = np.array([[3, 0], [0, 0.5], [-2, 0], [-1, 0]], np.float32)
        found = ensemble(texts, [2, 2])
        np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5], [-1, 0]], atol=1e-7)
        assert found.dtype == np.float32
        np.testing.assert_allclose(ensemble(texts, [1, 3])[1], np.array([-2, 1]) / 5**0.5, atol=1e-7)

    @pytest.mark.parametrize("counts", [[], [0, 4], [3], [5]])
    def test_not_whole_classes(self, counts):
        with pytest.raises(ValueError, match=f"for the classes, {sum(counts)} in all, got 4"):
            ensemble(np.ones((4, 2), np.float32), counts)

    def test_fewer_classes_than_places(self):
        images = np.array([[1, 0], [0, 1]], np.float32)
        assert classify(images, np.array([[0, 1], [1, 0]], np.float32)).tolist() == [
            [1, 0, -1, -1, -1],
            [0, 1, -1, -1, -1],
        ]
