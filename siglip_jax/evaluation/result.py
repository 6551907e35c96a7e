"""What every evaluation takes, and what it gives."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int

from siglip_jax._callbacks import OnProgress, OnUnreadable
from siglip_jax.evaluation.accuracy import Accuracy


@dataclasses.dataclass(frozen=True)
class Options:
    """What all evaluations take.

    Attributes:
      limit: images to take, at even distances; None: all.
      batch_size: as in `Siglip.encode_image`.
      model_name: what the result calls the model.
      on_unreadable: called with the index of an image that cannot be read and the error; it is left out.
      on_progress: called with the images read and their total, the training set's included.
    """

    limit: int | None = None
    batch_size: int | None = None
    model_name: str = "this model"
    on_unreadable: OnUnreadable | None = None
    on_progress: OnProgress | None = None


DEFAULTS = Options()


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
      task: its name.
      metrics: figures by name, shares of 1.
      examples: images that count.
      unreadable: images that could not be read.
      settings: of the evaluation, as JSON takes them.
      preprocessing: see `siglip_jax.inference.preprocessing.describe`.
      classes, accuracy: of a classification.
      numbers: of the images in the source.
      ranked: classes of each image, best first, -1 for none; in retrieval empty.
      labels: the right classes; in retrieval the number of each text's image, as a position in `numbers`.
      texts: of a retrieval.
      image_embeds, text_embeds: of a retrieval, for the images that `plot_retrieval` draws.
    """

    task: str
    metrics: dict[str, float]
    examples: int
    unreadable: int
    settings: dict[str, Any]
    preprocessing: dict[str, Any]
    numbers: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " _"]
    classes: tuple[str, ...] = ()
    accuracy: Accuracy | None = None
    ranked: Int[np.ndarray, "n top"] | None = None
    texts: tuple[str, ...] = ()
    image_embeds: np.ndarray | None = None
    text_embeds: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns what can be written as JSON: the figures, those of each class, the confusions, the preparation."""
        facts: dict[str, Any] = {
            "task": self.task,
            "metrics": self.metrics,
            "examples": self.examples,
            "unreadable": self.unreadable,
            "settings": self.settings,
            "preprocessing": self.preprocessing,
        }
        if (found := self.accuracy) is not None:
            rows = zip(self.classes, found.counts.tolist(), found.per_class.tolist(), strict=True)
            facts["classes"] = [
                {"class": name, "examples": count, "recall": recall if count else None} for name, count, recall in rows
            ]
            facts["confusions"] = [
                {"class": self.classes[a], "taken_for": self.classes[b], "examples": count}
                for a, b, count in found.confusions.tolist()
            ]
        return facts
