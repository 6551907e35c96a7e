"""Calibrates a model for the label set of a data set: fits on one half of the images, measures on the other."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from siglip_jax.data.example import Source
from siglip_jax.evaluation.calibration import (
    BINS,
    Accepted,
    Reliability,
    accepted,
    choose_threshold,
    fit_sigmoid,
    halves,
    log_loss,
    probabilities_of,
    reliability,
)
from siglip_jax.evaluation.evaluate import compare
from siglip_jax.evaluation.prompts import TEMPLATES
from siglip_jax.evaluation.result import DEFAULTS, Options
from siglip_jax.evaluation.wording import Wording, other_names
from siglip_jax.inference.calibration import Calibration
from siglip_jax.inference.engine import Siglip

LEAST = 10  # pairs of a bin; with fewer the error is that of chance


class Quality(NamedTuple):
    """How far the probabilities of some images can be trusted.

    Attributes:
      pairs: probabilities and shares in bins over all pairs of image and label.
      best: the same over the best label of each image.
      log_loss: mean over all pairs of -log of the probability of what turned out right.
      above_half: share of the matching pairs whose probability is above one half.
      matching: probability of each matching pair, (images,).
    """

    pairs: Reliability
    best: Reliability
    log_loss: float
    above_half: float
    matching: Float[np.ndarray, " images"]

    def to_dict(self) -> dict[str, Any]:
        """Returns the numbers as a dict serializable as JSON."""
        return {
            "ece": self.pairs.error,
            "ece_bins": len(self.pairs.counts),
            "ece_best_label": self.best.error,
            "ece_best_label_bins": len(self.best.counts),
            "log_loss": self.log_loss,
            "matches_above_half": self.above_half,
        }


class Half(NamedTuple):
    """What is measured on one half of the images.

    Attributes:
      examples: number of images.
      before: quality with the model's own temperature and bias.
      after: quality with the calibration.
      accepted: precision and recall of the calibration's threshold; None if it has none.
    """

    examples: int
    before: Quality
    after: Quality
    accepted: Accepted | None

    def to_dict(self) -> dict[str, Any]:
        """Returns the half as a dict serializable as JSON."""
        at = {} if self.accepted is None else {"precision": self.accepted.precision, "recall": self.accepted.recall}
        before, after = self.before.to_dict(), self.after.to_dict()
        return {"examples": self.examples, "before": before, "after": after, "at_threshold": at or None}


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """A calibration, and how good it is.

    Attributes:
      calibration: what `Siglip.classify` and `Siglip.similarity` take, and `Calibration.save` writes.
      held_out: what is measured on the images that nothing was fitted to.
      fitted: what is measured on the images of the fit, which flatters it.
      separable: whether every matching pair of the fitted half has a larger cosine than every other one; the
        temperature then says little more than how many images there are.
      temperature_before: the model's own temperature.
      bias_before: the model's own bias.
      unreadable: number of images that were left out because they are unreadable.
      settings: settings, serializable as JSON.
      preprocessing: model, dtype and preparation of images and texts, serializable as JSON.

    No example: see `calibrate`, which returns it.
    """

    calibration: Calibration
    held_out: Half
    fitted: Half
    separable: bool
    temperature_before: float
    bias_before: float
    unreadable: int
    settings: dict[str, Any]
    preprocessing: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as a dict serializable as JSON.

        Returns:
          `temperature` and `bias`, each with `before` and `after`; `threshold` and the `precision` it is for;
          `held_out` and `fitted`, each with `examples`, the errors `before` and `after` and `at_threshold`; and
          `separable`, `labels`, `unreadable`, `settings` and `preprocessing`.
        """
        made = self.calibration
        return {
            "temperature": {"before": self.temperature_before, "after": made.temperature},
            "bias": {"before": self.bias_before, "after": made.bias},
            "threshold": made.threshold,
            "precision": made.precision,
            "held_out": self.held_out.to_dict(),
            "fitted": self.fitted.to_dict(),
            "separable": self.separable,
            "labels": list(made.labels),
            "unreadable": self.unreadable,
            "settings": self.settings,
            "preprocessing": self.preprocessing,
        }


def calibrate(
    siglip: Siglip,
    source: Source,
    *,
    precision: float = 0.9,
    templates: Sequence[str] = TEMPLATES["names"],
    classes: Sequence[str] | None = None,
    canonicalize: bool = True,
    first_name_only: bool = True,
    seed: int = 0,
    options: Options = DEFAULTS,
) -> Calibrated:
    """Fits temperature, bias and threshold to the labels of a data set.

    A pair is an image and a label, and matches if the label is the image's. Temperature and bias minimise the
    cross-entropy over all pairs of one half of the images. The threshold is the one with the largest recall among those
    that reach the precision over the pairs of that half. The other half measures both. Neither the order of the labels
    of an image nor that of the images of a label changes, so that accuracy and recall at k stay as they are.

    The expected calibration error is the mean difference between probability and share of matching pairs, in 15 bins of
    equally many pairs, or as many as have ten pairs each: of all pairs, and of the best label of each image alone.

    Args:
      siglip: the model.
      source: data set with classes; images without a label are left out.
      precision: share of the accepted pairs that should match, above 0 and up to 1.
      templates: sentences in which the name of a class replaces `{}`; the default is the bare name.
      classes: names to use in place of `source.classes`; see `evaluate_zero_shot`.
      canonicalize: whether to write names and templates in lower case, without punctuation and with spaces for
        underscores; otherwise they are unchanged.
      first_name_only: whether to use only the name before the first comma; otherwise each name has prompts of its own.
      seed: seed of the split into halves; rows of the same image stay together.
      options: limit, batch size and callbacks, which all evaluations share.

    Returns:
      The calibration with its errors before and after, on the held-out half and on the fitted one.

    Raises:
      ValueError: if the precision is not in its range, there are fewer than two classes or fewer than two different
        images with labels, or matching pairs do not have larger cosines than others; see also `evaluate_zero_shot`.

    Example:
      >>> import siglip_jax
      >>> from siglip_jax.data import Example
      >>> class Pictograms:
      ...     classes = ("bicycle", "church", "cow", "horse", "lemon", "pizza")
      ...     def __len__(self): return 6
      ...     def __getitem__(self, index):
      ...         file = siglip_jax.assets.EXAMPLES / f"{self.classes[index]}.png"
      ...         return Example(file.read_bytes(), (), index, file.name)
      >>> found = calibrate(siglip_jax.load(), Pictograms())
      >>> found.separable  # one cosine separates matching pairs from others
      True
    """
    if not 0 < precision <= 1:
        raise ValueError(f"precision must be above 0 and up to 1, got {precision!r}; 0.9 is usual")
    wording = Wording(templates, canonicalize, first_name_only)
    compared = compare(siglip, source, wording, classes, options)
    embedded = compared.embedded
    cosines = embedded.embeds @ compared.class_embeds.T
    matches = embedded.labels[:, None] == np.arange(len(compared.names))
    own, other = halves(embedded.images, embedded.labels, seed)
    if not len(other):
        raise ValueError(
            f"images with labels must be two or more different ones, got 1 in {len(own)} rows; add images, of which one"
            " half is held out"
        )
    fit = fit_sigmoid(cosines[own], matches[own])
    chosen = choose_threshold(probabilities_of(cosines[own], fit.temperature, fit.bias), matches[own], precision)
    calibration = Calibration(
        compared.names,
        tuple(map(tuple, compared.by_class)),
        fit.temperature,
        fit.bias,
        None if chosen is None else chosen.threshold,
        float(precision),
        options.model_name,
        siglip.fingerprint,
    )
    before = siglip.temperature, siglip.logit_bias
    settings = {
        "limit": options.limit,
        "seed": seed,
        "labels": len(compared.names),
        "other_names": other_names(compared.names),
    }
    return Calibrated(
        calibration,
        _half(cosines[other], matches[other], before, calibration),
        _half(cosines[own], matches[own], before, calibration),
        fit.separable,
        *before,
        embedded.unreadable,
        settings,
        wording.describe(siglip, options.model_name),
    )


def _half(
    cosines: Float[np.ndarray, "images labels"],
    matches: Bool[np.ndarray, "images labels"],
    before: tuple[float, float],
    calibration: Calibration,
) -> Half:
    after = probabilities_of(cosines, calibration.temperature, calibration.bias)
    at = None if calibration.threshold is None else accepted(after, matches, calibration.threshold)
    return Half(len(cosines), _quality(probabilities_of(cosines, *before), matches), _quality(after, matches), at)


def _quality(probabilities: Float[np.ndarray, "images labels"], matches: Bool[np.ndarray, "images labels"]) -> Quality:
    rows, best = np.arange(len(matches)), probabilities.argmax(axis=1)
    matching = probabilities[matches]
    return Quality(
        _in_bins(probabilities, matches),
        _in_bins(probabilities[rows, best], matches[rows, best]),
        log_loss(probabilities, matches),
        float((matching > 0.5).mean()),
        matching,
    )


def _in_bins(probabilities: Float[np.ndarray, "..."], matches: Bool[np.ndarray, "..."]) -> Reliability:
    return reliability(probabilities, matches, max(1, min(BINS, matches.size // LEAST)))
