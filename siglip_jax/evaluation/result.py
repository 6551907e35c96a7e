"""Options and results that all evaluations share."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int

from siglip_jax._callbacks import OnProgress, OnUnreadable
from siglip_jax.evaluation.accuracy import Accuracy


@dataclasses.dataclass(frozen=True)
class Options:
    """Options that all evaluations take.

    Attributes:
      limit: number of images to evaluate, evenly spaced over the data set; None: all images.
      batch_size: images or texts per forward pass; None: the size that suits model and device.
      model_name: name of the model in the result.
      on_unreadable: called with (index in the source, error) for each unreadable image, which is left out; None: it is
        only counted.
      on_progress: called with (images read, total number of images), including those of a training set; None: nothing
        is called.

    Example:
      >>> Options(limit=1000, model_name="google/siglip-base-patch16-224").limit
      1000
    """

    limit: int | None = None
    batch_size: int | None = None
    model_name: str = "this model"
    on_unreadable: OnUnreadable | None = None
    on_progress: OnProgress | None = None


DEFAULTS = Options()


@dataclasses.dataclass(frozen=True)
class Result:
    """Metrics of an evaluation, and the predictions behind them.

    Attributes:
      task: "zero-shot", "retrieval", "linear-probe" or "knn".
      metrics: values by name, from 0 to 1: `top1`, `top5` and `mean_per_class` of a classification;
        `text_to_image_r1`, `image_to_text_r1` and so on of a retrieval.
      examples: number of images that the metrics are computed on.
      unreadable: number of images that were left out because they are unreadable.
      settings: settings of the evaluation, serializable as JSON.
      preprocessing: model, dtype and preparation of images and texts, serializable as JSON.
      numbers: index of each image in the source, (n,).
      labels: class of each image, (n,); in retrieval the index of each text's image in `numbers`, (texts,).
      classes: names of the classes; () in retrieval.
      accuracy: accuracy over all images and per class, and the confusions; None in retrieval.
      ranked: predicted classes of each image, (n, 5), best first, -1 where there are no more classes; None in
        retrieval.
      texts: texts of a retrieval; () otherwise.
      image_embeds: L2-normalised embeddings of the images of a retrieval, (n, E); None otherwise.
      text_embeds: L2-normalised embeddings of the texts of a retrieval, (texts, E); None otherwise.

    Example:
      >>> result = Result(
      ...     "zero-shot", {"top1": 0.5}, 2, 0, {}, {}, numbers=np.array([0, 1]), labels=np.array([1, 0])
      ... )
      >>> result.to_dict()["metrics"]
      {'top1': 0.5}
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
        """Returns the result as a dict serializable as JSON.

        Returns:
          `task`, `metrics`, `examples`, `unreadable`, `settings` and `preprocessing`; of a classification also
          `classes`, with the number of images and the recall of each class (None without images), and `confusions`,
          with the number of images of one class that were taken for another, most frequent first.
        """
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
