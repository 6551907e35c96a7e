"""The fit, its error and the threshold, against float64 sums, slow loops and all thresholds."""

import math

import numpy as np
import pytest

from siglip_jax.evaluation import calibration
from siglip_jax.evaluation.calibration import (
    accepted,
    choose_threshold,
    fit_sigmoid,
    halves,
    log_loss,
    probabilities_of,
    reliability,
)


def drawn(images: int, labels: int, temperature: float, bias: float, seed: int = 0):
    """Cosines, and matches that are drawn with the probabilities of a temperature and a bias."""
    rng = np.random.default_rng(seed)
    cosines = rng.normal(0.1, 0.08, (images, labels)).clip(-1, 1).astype(np.float32)
    return cosines, rng.random(cosines.shape) < probabilities_of(cosines, temperature, bias)


def gradient_by_hand(cosines, matches, temperature, bias) -> tuple[float, float]:
    """The mean gradient of the cross-entropy with Platt's targets, in exact sums of Python floats."""
    m, n = int(matches.sum()), int((~matches).sum())
    errors = []
    for c, match in zip(cosines.ravel().tolist(), matches.ravel().tolist(), strict=True):
        p = 1 / (1 + math.exp(-(temperature * c + bias)))
        errors.append((p - ((m + 1) / (m + 2) if match else 1 / (n + 2)), c))
    return math.fsum(e * c for e, c in errors) / (m + n), math.fsum(e for e, _ in errors) / (m + n)


@pytest.mark.parametrize(("images", "labels", "temperature", "bias"), [(37, 5, 46.8, -7.6), (400, 3, 12.5, -3.0)])
def test_the_gradient_is_zero_at_the_fit(images, labels, temperature, bias, monkeypatch):
    cosines, matches = drawn(images, labels, temperature, bias)
    fit = fit_sigmoid(cosines, matches)
    assert np.abs(gradient_by_hand(cosines, matches, fit.temperature, fit.bias)).max() <= 1e-12
    monkeypatch.setattr(calibration, "_BLOCK", 4 * labels + 1)  # the last block is not whole
    blocks = fit_sigmoid(cosines, matches)
    np.testing.assert_allclose(blocks[:2], fit[:2], rtol=1e-9)


def test_a_known_temperature_and_bias_are_found():
    cosines, matches = drawn(20_000, 10, 40.0, -9.0)
    fit = fit_sigmoid(cosines, matches)
    assert fit.temperature == pytest.approx(40.0, rel=0.02)
    assert fit.bias == pytest.approx(-9.0, rel=0.02)
    assert not fit.separable


def test_separable_pairs_give_a_finite_temperature_that_grows_with_their_number():
    found = []
    for images in (4, 40, 400):
        cosines = np.where(np.eye(images, dtype=bool), 0.4, 0.1).astype(np.float32)
        fit = fit_sigmoid(cosines, np.eye(images, dtype=bool))
        assert fit.separable
        # Two points are fitted exactly: the targets of Platt are the probabilities.
        high, low = (images + 1) / (images + 2), 1 / (images * (images - 1) + 2)
        assert probabilities_of(np.array([0.4, 0.1], np.float32), *fit[:2]) == pytest.approx([high, low], rel=1e-9)
        found.append(fit.temperature)
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("cosines", "matches", "message"),
    [
        ([[0.1, 0.2]], [[True, True]], "pairs must be of both kinds, got 2 that match and 0 others"),
        ([[0.1, 0.2]], [[False, False]], "pairs must be of both kinds, got 0 that match and 2 others"),
        ([[0.1, 0.1]], [[True, False]], "cosines must differ between pairs, got 0.1 for all"),
        (
            [[0.1, 0.2]],
            [[True, False]],
            "matching pairs must have larger cosines than others, got a fitted temperature of",
        ),
        ([[0.1, np.nan]], [[True, False]], "cosines must be finite, got NaN"),
    ],
)
def test_what_cannot_be_fitted(cosines, matches, message):
    with pytest.raises(ValueError, match=message):
        fit_sigmoid(np.array(cosines, np.float32), np.array(matches))


def reliability_by_hand(probabilities, matches, bins):
    """The bins and the error, pair by pair."""
    ordered = sorted(probabilities)
    starts = [ordered[i * len(ordered) // bins] for i in range(bins)]
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for p, match in zip(probabilities, matches, strict=True):
        members[max(i for i in range(bins) if starts[i] <= p)].append((p, match))
    error = sum(abs(sum(p for p, _ in own) - sum(match for _, match in own)) for own in members) / len(probabilities)
    return [len(own) for own in members], error


@pytest.mark.parametrize("bins", [1, 4, 15])
@pytest.mark.parametrize("ties", [False, True])
def test_the_calibration_error_is_that_of_a_slow_loop(bins, ties):
    rng = np.random.default_rng(bins)
    p = rng.random((13, 7)) ** 3
    p = p.round(1) if ties else p
    matches = rng.random(p.shape) < p
    found = reliability(p, matches, bins)
    counts, error = reliability_by_hand(p.ravel().tolist(), matches.ravel().tolist(), bins)
    assert found.counts.tolist() == counts
    assert found.error == pytest.approx(error, abs=1e-14)
    order = rng.permutation(p.size)
    assert reliability(p.ravel()[order], matches.ravel()[order], bins).error == pytest.approx(error, abs=1e-14)
    if not ties:
        assert max(counts) - min(counts) <= 1


def test_the_error_of_perfect_and_of_wrong_probabilities():
    p = np.repeat([0.0, 0.5, 1.0], 4)
    right = np.array([0, 0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1], bool)
    assert reliability(p, right, 3).error == 0
    assert reliability(np.full(12, 0.75), right, 3).error == pytest.approx(0.25)
    with pytest.raises(ValueError, match="pairs must be one or more of equal shapes"):
        reliability(np.zeros(0), np.zeros(0, bool))
    assert log_loss(np.array([0.5, 1.0]), np.array([True, True])) == pytest.approx(math.log(2) / 2)


def best_by_hand(probabilities, matches, precision):
    """The largest recall and its largest precision, over every threshold that makes a difference."""
    best = None
    for threshold in sorted(set(probabilities)):
        taken = [match for p, match in zip(probabilities, matches, strict=True) if p >= threshold]
        if sum(taken) and sum(taken) / len(taken) >= precision:
            found = sum(taken) / sum(matches), sum(taken) / len(taken)
            best = found if best is None else max(best, found)
    return best


@pytest.mark.parametrize("precision", [0.05, 0.5, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_the_threshold_is_the_best_of_all(precision, ties):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        p = rng.random((9, 6))
        p = p.round(1) if ties else p
        matches = rng.random(p.shape) < p**2
        expected = best_by_hand(p.ravel().tolist(), matches.ravel().tolist(), precision)
        found = choose_threshold(p, matches, precision)
        if expected is None:
            assert found is None
            continue
        assert found is not None
        assert (found.recall, found.precision) == pytest.approx(expected, abs=1e-15)
        assert found == accepted(p, matches, found.threshold)


def test_a_threshold_is_half_way_to_the_next_pair():
    p, matches = np.array([[0.8, 0.6, 0.2]]), np.array([[True, True, False]])
    assert choose_threshold(p, matches, 0.9) == (pytest.approx(0.4), 1.0, 1.0)
    assert choose_threshold(p, ~matches, 0.9) is None
    assert choose_threshold(p, np.zeros((1, 3), bool), 0.9) is None
    assert choose_threshold(p, np.ones((1, 3), bool), 0.9) == (0.2, 1.0, 1.0)
    near = np.nextafter(0.5, 1)
    assert choose_threshold(np.array([near, 0.5]), np.array([True, False]), 1.0) == (near, 1.0, 1.0)
    assert accepted(p, matches, 0.9).precision is None


def test_halves_have_every_label_and_share_no_image():
    labels = np.repeat(np.arange(5), 8)
    images = np.arange(40) // 2 * 2  # each image is in two rows
    first, second = halves(images, labels, seed=3)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(40))
    assert not set(images[first].tolist()) & set(images[second].tolist())
    assert np.bincount(labels[first]).tolist() == np.bincount(labels[second]).tolist() == [4] * 5
    other = halves(images, labels, seed=4)
    assert first.tolist() != other[0].tolist()
    assert first.tolist() == halves(images, labels, seed=3)[0].tolist()
    one_each = halves(np.arange(7), np.arange(7), seed=0)
    assert [len(half) for half in one_each] == [4, 3]
