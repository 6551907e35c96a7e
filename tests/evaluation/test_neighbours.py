"""Nearest neighbours and their votes against brute force."""

import sys

import numpy as np
import pytest

from siglip_jax.evaluation import neighbours
from siglip_jax.evaluation.neighbours import nearest_keys, vote


def whole_numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Small whole numbers: products are exact, and many are equal."""
    return rng.integers(-2, 3, shape).astype(np.float32)


@pytest.mark.parametrize(("n", "m", "k"), [(5, 3, 3), (23, 70, 7), (1, 64, 1), (17, 65, 20)])
def test_equal_to_brute_force_with_ties(monkeypatch, n, m, k):
    monkeypatch.setattr(sys.modules["siglip_jax.search.nearest"], "QUERIES", 8)
    monkeypatch.setattr(neighbours, "BLOCK", 16)
    rng = np.random.default_rng(n)
    queries, keys = whole_numbers(rng, n, 6), whole_numbers(rng, m, 6)
    products = queries @ keys.T
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    values, numbers = nearest_keys(queries, keys, k)
    np.testing.assert_array_equal(numbers, order)
    np.testing.assert_array_equal(values, np.take_along_axis(products, order, axis=1))


def test_real_embeddings_across_default_blocks():
    rng = np.random.default_rng(0)
    queries, keys = (rng.normal(size=(n, 8)).astype(np.float32) for n in (300, 9000))
    values, numbers = nearest_keys(queries, keys, 5)
    products = queries @ keys.T
    expected = -np.sort(-products, axis=1)[:, :5]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(products, numbers, axis=1), expected, rtol=1e-5)


def test_all_negative_products_are_not_beaten_by_padding(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 4)
    keys = -np.ones((5, 2), np.float32)
    assert nearest_keys(np.ones((1, 2), np.float32), keys, 5)[1].tolist() == [[0, 1, 2, 3, 4]]


def test_refusals():
    one = np.ones((1, 2), np.float32)
    with pytest.raises(ValueError, match="k must be from 1 to 1, the number of embeddings to choose from, got 2"):
        nearest_keys(one, one, 2)
    with pytest.raises(ValueError, match="keys must be finite, got NaN or infinity in 1 of 1 rows"):
        nearest_keys(one, one * np.nan, 1)
    assert nearest_keys(np.zeros((0, 2), np.float32), one, 1)[1].shape == (0, 1)
    with pytest.raises(ValueError, match="temperature must be above 0, or None for equal votes, got 0.0"):
        vote(one, one.astype(int), temperature=0.0)


def votes_by_hand(similarities, labels, temperature):
    ranked = []
    for near, classes in zip(similarities, labels, strict=True):
        total: dict[int, float] = {}
        for similarity, label in zip(near, classes, strict=True):
            total[label] = total.get(label, 0) + (1 if temperature is None else np.exp(similarity / temperature))
        order = sorted(total, key=lambda label: -total[label])  # stable: the nearest first
        ranked.append((order + [-1] * 5)[:5])
    return ranked


@pytest.mark.parametrize("temperature", [None, 0.07, 1.0])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_votes(monkeypatch, temperature, k):
    monkeypatch.setattr(neighbours, "VOTES", 4 * k * k)
    rng = np.random.default_rng(k)
    similarities = -np.sort(-rng.uniform(-1, 1, (30, k)), axis=1).astype(np.float32)
    labels = rng.integers(0, 7, (30, k))
    found = vote(similarities, labels, temperature=temperature)
    assert found.tolist() == votes_by_hand(similarities.astype(float), labels.tolist(), temperature)


def test_weights_can_overrule_numbers_and_do_not_overflow():
    similarities, labels = np.array([[0.9, 0.1, 0.1]], np.float32), np.array([[4, 2, 2]])
    assert vote(similarities, labels).tolist() == [[2, 4, -1, -1, -1]]
    assert vote(similarities, labels, temperature=1e-3).tolist() == [[4, 2, -1, -1, -1]]
