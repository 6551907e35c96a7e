"""The calibration of a label set: temperature and bias in place of the model's, a threshold, and the file with them.

A model's own temperature and bias come from training, where one text in tens of thousands matches an image. Among a few
labels its probabilities are far too low, although their order is right.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from siglip_jax._checks import shown
from siglip_jax._files import output_path, read_json, write_atomically
from siglip_jax.inference.labels import probabilities

FORMAT = "siglip-jax calibration 1"


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Temperature, bias and threshold that fit the labels of one task, for one model.

    The probability of a label is sigmoid(temperature * cosine + bias). Within a label set a calibration never changes
    the order of labels or images, only how likely each is said to be. It holds for images like those it was fitted to,
    for these labels and prompts, and for these weights.

    Attributes:
      labels: names of the labels.
      prompts: texts of each label, in the order of the labels; the mean of their embeddings stands for the label.
      temperature: factor of the cosines, above 0.
      bias: what is added to temperature times cosine.
      threshold: probability from which on a label is accepted, 0 to 1; None: none reaches the precision.
      precision: share of accepted pairs of image and label that should be right, above 0 and up to 1, for which the
        threshold was chosen.
      model: name of the model, for messages.
      fingerprint: `Siglip.fingerprint` of the model.

    Raises:
      ValueError: if a value is of another kind or out of its range, or there are not as many prompts as labels.

    Example:
      >>> import siglip_jax
      >>> siglip = siglip_jax.load()
      >>> labels = ("horse", "lemon")
      >>> calibration = Calibration(
      ...     labels, (("horse",), ("lemon",)), 30.0, -3.0, 0.5, 0.9, "the bundled model", siglip.fingerprint
      ... )
      >>> ranked = siglip.classify(siglip_jax.assets.EXAMPLES / "horse.png", calibration=calibration)
      >>> [(entry["label"], entry["accepted"]) for entry in ranked]
      [('horse', True), ('lemon', False)]
    """

    labels: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    temperature: float
    bias: float
    threshold: float | None
    precision: float
    model: str
    fingerprint: str

    def __post_init__(self) -> None:
        if wrong := next(_mistakes(vars(self)), None):
            raise ValueError(wrong)

    def probabilities(self, cosines: Float[np.ndarray, "images labels"]) -> Float[np.ndarray, "images labels"]:
        """Returns the calibrated probabilities of cosines.

        Args:
          cosines: cosine of each image with each label, (images, labels).

        Returns:
          (images, labels) float32 in [0, 1].
        """
        return probabilities(cosines, self.temperature, self.bias)

    def check_model(self, fingerprint: str) -> None:
        """Checks that a model is the one that this calibration was fitted for.

        Args:
          fingerprint: `Siglip.fingerprint` of the model.

        Raises:
          ValueError: if it is another model, or the same one in another dtype or number format.
        """
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"the model must be the one that the calibration was fitted for, {shown(self.model)} with fingerprint"
                f" {self.fingerprint:.16}, got one with {fingerprint:.16}; load that model, with the same dtype and"
                " quantization, or fit a calibration for this one with siglip-jax calibrate"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the calibration as JSON, under a temporary name that is renamed.

        Args:
          path: file to write.

        Raises:
          OSError: if it cannot be written.
        """
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2, ensure_ascii=False)
        write_atomically(output_path(path), text.encode() + b"\n")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Calibration":
        """Reads a calibration; every value is checked.

        Args:
          path: file that `save` wrote.

        Returns:
          The calibration.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if it is not a calibration or is damaged.
        """
        path = Path(path)
        found = read_json(path, "a calibration is made with siglip-jax calibrate DATA --out FILE")
        if found.pop("format", None) != FORMAT:
            raise ValueError(f"{path}: format must be {FORMAT!r}, got another file; name one of siglip-jax calibrate")
        names = [field.name for field in dataclasses.fields(cls)]
        if set(found) != set(names):
            got = shown(", ".join(sorted(found)) or "none")
            raise ValueError(f"{path}: the fields must be {', '.join(names)}, got {got}; fit the calibration again")
        found |= {name: _as_tuples(found[name]) for name in ("labels", "prompts")}
        if wrong := next(_mistakes(found), None):
            raise ValueError(f"{path}: {wrong}")
        numbers = ("temperature", "bias", "threshold", "precision")
        return cls(**found | {name: float(found[name]) for name in numbers if found[name] is not None})


def _as_tuples(value: Any) -> Any:
    """Returns nested lists as nested tuples."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _mistakes(found: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong with the fields of a calibration, which may come from a damaged file."""
    again = "fit the calibration again"
    labels, prompts = found["labels"], found["prompts"]
    if not _are_texts(labels):
        yield f"labels must be one or more names, got {shown(labels)}; {again}"
    elif not isinstance(prompts, tuple) or not all(map(_are_texts, prompts)) or len(prompts) != len(labels):
        yield f"prompts must be one or more texts for each of {len(labels)} labels, got {shown(prompts)}; {again}"
    for name in ("model", "fingerprint"):
        if not isinstance(found[name], str):
            yield f"{name} must be a string, got {shown(found[name])}; {again}"
    most = float(np.finfo(np.float32).max)
    least = math.ulp(0.0)
    for name, low, high, words in (
        ("temperature", least, most, "a finite number above 0"),
        ("bias", -most, most, "a finite number"),
        ("threshold", 0, 1, "a number from 0 to 1 or None"),
        ("precision", least, 1, "a number above 0 and up to 1"),
    ):
        value = found[name]
        if name == "threshold" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            yield f"{name} must be {words}, got {shown(value)}; {again}"


def _are_texts(values: Any) -> bool:
    return isinstance(values, tuple) and bool(values) and all(isinstance(x, str) and x.strip() for x in values)
