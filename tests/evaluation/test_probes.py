"""Linear probes against the same problems solved in float64 by other means."""

import numpy as np
import pytest

from siglip_jax.evaluation import probes
from siglip_jax.evaluation.probes import choose, few_shots, fit_logistic, fit_ridge

CLASSES = 4


@pytest.fixture(scope="module")
def problem():
    """Overlapping classes far from the origin, of unequal sizes, as embeddings are."""
    rng = np.random.default_rng(0)
    labels = rng.choice(CLASSES, 301, p=[0.5, 0.3, 0.15, 0.05])
    features = rng.normal(size=(CLASSES, 7))[labels] + rng.normal(size=(301, 7)) + 4
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), labels


def newton(features, labels, strength, scale):
    """Minimises the same objective in float64 by Newton's method; returns logits of the features."""
    x = (features.astype(np.float64) - features.astype(np.float64).mean(0)) / scale
    x = np.pad(x, ((0, 0), (0, 1)), constant_values=1.0)
    n, width = x.shape
    penalty = np.append(np.full(width - 1, strength), 1e-9)  # the constants are free but for their sum
    weights = np.zeros((width, CLASSES))
    for _ in range(50):
        logits = x @ weights
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = x.T @ (p - np.eye(CLASSES)[labels]) / n + penalty[:, None] * weights
        curvature = np.einsum("nc,cd->ncd", p, np.eye(CLASSES)) - np.einsum("nc,nd->ncd", p, p)
        hessian = np.einsum("ni,nj,ncd->icjd", x, x, curvature, optimize=True) / n
        hessian = hessian.reshape(width * CLASSES, -1) + np.diag(np.repeat(penalty, CLASSES))
        weights -= np.linalg.solve(hessian, gradient.ravel()).reshape(width, CLASSES)
    assert np.abs(gradient).max() < 1e-12
    return x @ weights


@pytest.mark.slow
def test_logistic_regression_is_the_minimum(problem, monkeypatch):
    monkeypatch.setattr(probes, "BLOCK", 40 * CLASSES)  # eight blocks, the last not full
    features, labels = problem
    scale = np.sqrt(features.astype(np.float64).var(0).mean())
    strengths = (1.0, 1e-2, 1e-4)
    for found, strength in zip(fit_logistic(features, labels, CLASSES, strengths), strengths, strict=True):
        assert found.strength == strength
        assert found.gradient <= 1e-5
        logits, expected = features @ found.weights + found.bias, newton(features, labels, strength, scale)
        logits, expected = (x - x.mean(1, keepdims=True) for x in (logits, expected))
        assert np.abs(logits - expected).max() <= 1e-3 * np.abs(expected).max()
        np.testing.assert_array_equal(found.classify(features)[:, 0], expected.argmax(1))


@pytest.mark.parametrize("strength", [1e-2, 1.0, 100.0])
def test_ridge_regression_solves_its_equations(problem, strength):
    """Its weights and constant, together, by least squares on rows that stand for the penalty."""
    features, labels = problem
    deviation = features.astype(np.float64).std(0) + 1e-5
    x = np.pad(features / deviation, ((0, 0), (0, 1)), constant_values=1.0)
    penalty = np.pad(np.sqrt(strength) * np.eye(7), ((0, 0), (0, 1)))
    targets = np.concatenate([2 * np.eye(CLASSES)[labels] - 1, np.zeros((7, CLASSES))])
    expected = np.linalg.lstsq(np.concatenate([x, penalty]), targets, rcond=None)[0]
    (found,) = fit_ridge(features, labels, CLASSES, [strength])
    np.testing.assert_allclose(found.weights * deviation[:, None], expected[:-1], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.bias, expected[-1], rtol=1e-6, atol=1e-8)


def test_ridge_with_fewer_examples_than_features():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(6, 40)).astype(np.float32), np.arange(6) % 3
    (found,) = fit_ridge(features, labels, 3, [1e-3])
    assert found.classify(features, top=1)[:, 0].tolist() == labels.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("fit", [fit_logistic, fit_ridge])
def test_separable_classes_are_separated(fit):
    """Two classes on either side of a plane whose direction is known, a third class that has no examples."""
    rng = np.random.default_rng(0)
    normal = np.array([3, -4, 0], np.float32) / 5
    labels = rng.integers(0, 2, 200)
    inside = rng.normal(size=(200, 3)) @ (np.eye(3) - np.outer(normal, normal))
    features = (0.1 * inside + (2 * labels - 1)[:, None] * normal).astype(np.float32)
    (found,) = fit(features, labels, 3, [1e-3])
    assert (found.classify(features)[:, 0] == labels).all()
    direction = found.weights[:, 1] - found.weights[:, 0]
    assert direction @ normal / np.linalg.norm(direction) > 0.999
    assert found.classify(features).shape == (200, 5)


class TestChoice:
    def test_the_best_on_what_was_held_out(self, problem):
        features, labels = problem
        chosen = choose(fit_ridge, features, labels, CLASSES, (1e6, 1.0), seed=1)
        assert chosen.classifier.strength == 1.0
        assert chosen.tried[1.0] > chosen.tried[1e6]
        np.testing.assert_array_equal(chosen.classifier.weights, fit_ridge(features, labels, CLASSES, [1.0])[0].weights)

    def test_of_equals_the_strongest(self):
        features = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
        chosen = choose(fit_ridge, features, np.repeat([0, 1], 5), 2, (1.0, 0.1))
        assert (chosen.classifier.strength, chosen.tried) == (1.0, {1.0: 1.0, 0.1: 1.0})

    def test_one_strength_needs_nothing_held_out(self):
        features = np.eye(2, dtype=np.float32)
        assert choose(fit_ridge, features, np.array([0, 1]), 2, (1.0,)).tried == {}
        with pytest.raises(
            ValueError, match="a class must have two images or more .*, got one of each class; pass one strength"
        ):
            choose(fit_ridge, features, np.array([0, 1]), 2, (1.0, 0.1))

    def test_every_class_keeps_examples(self):
        labels = np.array([0] * 10 + [1] * 2 + [2])
        away = probes._part_of_each(labels, 0.2, 0)
        assert np.bincount(labels[away], minlength=3).tolist() == [2, 1, 0]
        assert np.bincount(labels[probes._part_of_each(labels, 1.0, 0)], minlength=3).tolist() == [9, 1, 0]

    def test_few_shots(self):
        labels = np.array([1, 0, 1, 0, 1, 5])
        taken = few_shots(labels, 2)
        assert np.bincount(labels[taken], minlength=6).tolist() == [2, 2, 0, 0, 0, 1]
        assert {tuple(few_shots(labels, 2, seed)) for seed in range(9)} != {tuple(taken)}


@pytest.mark.parametrize("fit", [fit_logistic, fit_ridge])
def test_refusals(fit):
    features, labels = np.eye(2, dtype=np.float32), np.array([0, 1])
    for arguments, message in (
        (
            (features, labels[:1], 2, [1.0]),
            "features must be one or more, with a label each, got 2 features and 1 labels",
        ),
        ((features, labels, 1, [1.0]), "labels must be from 0 to 0, got 0 to 1"),
        ((features, labels, 2, [0.0]), r"strengths must be above 0, got \(0.0,\)"),
        ((features, labels, 2, []), r"strengths must be above 0, got \(\)"),
        ((features * np.nan, labels, 2, [1.0]), "features must be finite, got NaN or infinity in 2 of 2 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(*arguments)
