"""The bias of the bundled model: what is minimised, and over which pairs."""

import numpy as np
import pytest

from research.pictograms.bias import GROUPS, NAMES, fitted_bias, pairs_of


@pytest.mark.parametrize("seed", [0, 1])
def test_the_bias_has_the_least_cross_entropy(seed):
    rng = np.random.default_rng(seed)
    matching, others = rng.normal(6.0, 4.0, 50), rng.normal(-4.0, 3.0, 3150)
    found = fitted_bias(matching, others)
    tried = found + np.linspace(-2, 2, 401)
    losses = [np.logaddexp(0, -matching - b).sum() + np.logaddexp(0, others + b).sum() for b in tried]
    assert tried[np.argmin(losses)] == pytest.approx(found, abs=0.011)


def test_pairs_are_of_groups_of_drawings_and_their_names():
    matching, others = pairs_of(np.arange(100.0)[:, None] - np.arange(100.0)[None])
    assert (len(matching), len(others)) == (GROUPS * NAMES, GROUPS * NAMES * (NAMES - 1))
    assert not matching.any() and others.all()
