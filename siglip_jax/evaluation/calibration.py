"""Calibration of probabilities, from cosines and matches alone: the fit, its error, and the threshold for a precision.

A pair is an image and a label; it matches if the label is right. All sums are float64, over blocks of rows, so that the
memory beside the cosines does not grow with their number.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

BINS = 15
_BLOCK = 1 << 20  # pairs at once
_ITERATIONS = 200
_FLAT = 1e-14  # largest entry of a gradient that counts as zero
_STUCK = 1e6  # damping with which a step changes nothing


class Fit(NamedTuple):
    """A logistic fit to cosines.

    Attributes:
      temperature: factor of the cosines, above 0.
      bias: what is added to temperature times cosine.
      separable: whether every matching pair has a larger cosine than every other pair; the temperature is then as large
        as the number of pairs lets it be.
    """

    temperature: float
    bias: float
    separable: bool


class Reliability(NamedTuple):
    """Probabilities beside the share that they turned out right, in bins of equally many pairs.

    Attributes:
      counts: number of pairs of each bin, (bins,).
      probabilities: mean probability of each bin, (bins,); NaN for an empty bin.
      shares: share of matching pairs of each bin, (bins,); NaN for an empty bin.
    """

    counts: Int[np.ndarray, " bins"]
    probabilities: Float[np.ndarray, " bins"]
    shares: Float[np.ndarray, " bins"]

    @property
    def error(self) -> float:
        """The expected calibration error: mean over pairs of the difference between probability and share of a bin."""
        differences = np.abs(self.probabilities - self.shares)
        return float(np.nansum(self.counts * differences) / self.counts.sum())


class Accepted(NamedTuple):
    """What is accepted from a threshold on.

    Attributes:
      threshold: the threshold, a probability.
      precision: share of the accepted pairs that match; None if none is accepted.
      recall: share of the matching pairs that are accepted.
    """

    threshold: float
    precision: float | None
    recall: float


def fit_sigmoid(cosines: Float[np.ndarray, "images labels"], matches: Bool[np.ndarray, "images labels"]) -> Fit:
    """Fits temperature and bias so that sigmoid(temperature * cosine + bias) is the probability of a match.

    The mean cross-entropy over all pairs, which is convex, is minimised by Newton's method, damped as by Levenberg and
    Marquardt. The targets are not 1 and 0 but (m + 1) / (m + 2) and 1 / (n + 2), for m matching pairs and n others:
    with 1 and 0 the temperature would be infinite where a cosine separates them.

    Source: "Probabilistic Outputs for Support Vector Machines" (Platt, 1999); "A Note on Platt's Probabilistic Outputs"
    (Lin, Lin and Weng, 2007).

    Args:
      cosines: cosine of each image with each label, (images, labels).
      matches: whether each pair matches, (images, labels).

    Raises:
      ValueError: if a cosine is not finite, all pairs match or none does, all cosines are equal, or
        matching pairs do not have larger cosines than others.
    """
    matching, others = int(matches.sum()), int((~matches).sum())
    if not matching or not others:
        raise ValueError(f"pairs must be of both kinds, got {matching} that match and {others} others")
    total = matching + others
    center = sum(float(c.sum()) for c, _ in _blocks(cosines, matches)) / total
    if not np.isfinite(center):
        raise ValueError("cosines must be finite, got NaN or infinity; check the weights")
    spread = (sum(float(((c - center) ** 2).sum()) for c, _ in _blocks(cosines, matches)) / total) ** 0.5
    if not spread > 1e-12:
        raise ValueError(f"cosines must differ between pairs, got {center:g} for all; check the images and labels")
    high, low = (matching + 1) / (matching + 2), 1 / (others + 2)

    def state_at(at: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        loss, gradient, curvature = 0.0, np.zeros(2), np.zeros((2, 2))
        for c, match in _blocks(cosines, matches):
            scaled, target = (c - center) / spread, np.where(match, high, low)
            logits = at[0] * scaled + at[1]
            p = _sigmoid(logits)
            error, weight = p - target, p * (1 - p)
            loss += float((np.logaddexp(0, logits) - target * logits).sum())
            gradient += (error * scaled).sum(), error.sum()
            mixed = (weight * scaled).sum()
            curvature += [[(weight * scaled**2).sum(), mixed], [mixed, weight.sum()]]
        return loss / total, gradient / total, curvature / total

    at, damping = np.array([0.0, np.log((matching + 1) / (others + 1))]), 1e-3
    loss, gradient, curvature = state_at(at)
    for _ in range(_ITERATIONS):
        if np.abs(gradient).max() <= _FLAT or damping > _STUCK:  # in the end rounding is all that is left
            break
        tried = at - np.linalg.solve(curvature + damping * np.eye(2), gradient)
        state = state_at(tried)
        flatter = np.abs(state[1]).max() < np.abs(gradient).max() and state[0] <= loss * (1 + 1e-12)
        if state[0] < loss or flatter:
            at, (loss, gradient, curvature), damping = tried, state, max(damping / 10, 1e-15)
        else:
            damping *= 10
    temperature = float(at[0] / spread)
    if not temperature > 0:
        raise ValueError(
            f"matching pairs must have larger cosines than others, got a fitted temperature of {temperature:.3g}; check"
            " that the labels and the model suit the images"
        )
    separable = bool(cosines[matches].min() > cosines[~matches].max())
    return Fit(temperature, float(at[1] - at[0] * center / spread), separable)


def log_loss(probabilities: Float[np.ndarray, "..."], matches: Bool[np.ndarray, "..."]) -> float:
    """Returns the mean of -log of the probability of what turned out right; zeros and ones count as 1e-15 from it."""
    p = np.clip(probabilities, 1e-15, 1 - 1e-15)
    return float(-np.where(matches, np.log(p), np.log1p(-p)).mean())


def reliability(
    probabilities: Float[np.ndarray, "..."], matches: Bool[np.ndarray, "..."], bins: int = BINS
) -> Reliability:
    """Compares probabilities with the shares that turned out right, in bins of equally many pairs.

    A bin starts at every (pairs / bins)-th probability in order; equal ones are in the same bin, so that no result
    depends on the order of the data, and a bin may be empty.

    Source: "Measuring Calibration in Deep Learning" (Nixon et al., 2019), whose adaptive calibration error has such
    bins.

    Args:
      probabilities: probability of each pair, of any shape.
      matches: whether each pair matches, of the same shape.
      bins: number of bins, at least 1.

    Raises:
      ValueError: if there are no pairs or the shapes differ.
    """
    p, match = probabilities.reshape(-1), matches.reshape(-1)
    if not len(p) or probabilities.shape != matches.shape:
        raise ValueError(f"pairs must be one or more of equal shapes, got {probabilities.shape} and {matches.shape}")
    starts = np.sort(p)[[i * len(p) // bins for i in range(bins)]]
    own = np.searchsorted(starts, p, side="right") - 1
    counts = np.bincount(own, minlength=bins)
    with np.errstate(invalid="ignore"):
        means, shares = (np.bincount(own, weights=x, minlength=bins) / counts for x in (p, match))
    return Reliability(counts, means, shares)


def choose_threshold(
    probabilities: Float[np.ndarray, "..."], matches: Bool[np.ndarray, "..."], precision: float
) -> Accepted | None:
    """Returns the threshold with the largest recall among those that reach a precision.

    Of several with this recall it is the highest, that with the largest precision. It lies half-way between the lowest
    accepted probability and the next lower one, so that rounding on another machine changes nothing.

    Args:
      probabilities: probability of each pair, of any shape.
      matches: whether each pair matches, of the same shape.
      precision: share of the accepted pairs that must match at least.

    Returns:
      The threshold with its precision and recall; None if no threshold reaches the precision, or nothing matches.
    """
    right = np.sort(probabilities[matches])
    wrong = probabilities[~matches]
    if not len(right):
        return None
    # Wrong pairs that reach each right one: those above as many right ones as its place.
    passed = np.bincount(np.searchsorted(right, wrong, side="right"), minlength=len(right) + 1)
    false = passed[::-1].cumsum()[::-1][1:]
    first = np.searchsorted(right, right, side="left")  # of equal ones
    true = len(right) - first
    reached = np.flatnonzero(true / (true + false[first]) >= precision)
    if not len(reached):
        return None
    lowest = float(right[first[reached[0]]])
    below = probabilities[probabilities < lowest]
    middle = (lowest + float(below.max())) / 2 if below.size else lowest
    return accepted(probabilities, matches, middle if not below.size or middle > below.max() else lowest)


def accepted(probabilities: Float[np.ndarray, "..."], matches: Bool[np.ndarray, "..."], threshold: float) -> Accepted:
    """Returns the precision and the recall of a threshold.

    Args:
      probabilities: probability of each pair, of any shape.
      matches: whether each pair matches, of the same shape; one or more do.
      threshold: probability from which on a pair is accepted.
    """
    taken = probabilities >= threshold
    hits = int((taken & matches).sum())
    return Accepted(threshold, hits / count if (count := int(taken.sum())) else None, hits / int(matches.sum()))


def halves(
    images: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], seed: int
) -> tuple[Int[np.ndarray, " fitted"], Int[np.ndarray, " held_out"]]:
    """Splits rows at random into two halves, with each label in both where it has several different images.

    Args:
      images: a number for each row that rows of the same image share; they stay in one half.
      labels: label of each row.
      seed: seed of the split.

    Returns:
      Rows of the first half and of the second, each in order.
    """
    _, first, own = np.unique(images, return_index=True, return_inverse=True)
    order = np.lexsort((np.random.default_rng(seed).permutation(len(first)), labels[first]))
    second = np.zeros(len(first), bool)
    second[order[1::2]] = True
    return np.flatnonzero(~second[own]), np.flatnonzero(second[own])


def probabilities_of(cosines: Float[np.ndarray, "..."], temperature: float, bias: float) -> Float[np.ndarray, "..."]:
    """Returns sigmoid(temperature * cosine + bias) in float64."""
    return _sigmoid(cosines.astype(np.float64) * temperature + bias)


def _blocks(
    cosines: Float[np.ndarray, "images labels"], matches: Bool[np.ndarray, "images labels"]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields blocks of rows, the cosines in float64."""
    rows = max(1, _BLOCK // cosines.shape[1])
    for start in range(0, len(cosines), rows):
        yield cosines[start : start + rows].astype(np.float64), matches[start : start + rows]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(logits))
    return np.where(logits < 0, small, 1.0) / (1 + small)
