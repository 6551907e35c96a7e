"""What is counted of a classification: accuracies, over all and by class, and which class is taken for which."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Shares of 1.

    Attributes:
      top1, top5: of all images.
      mean_per_class: of the recalls of the classes that have images.
      per_class: recall by class; NaN for a class without images.
      counts: images by class.
      confusions: rows of (class, class it was taken for, images), those of different classes, most images first.
    """

    top1: float
    top5: float
    mean_per_class: float
    per_class: Float[np.ndarray, " classes"]
    counts: Int[np.ndarray, " classes"]
    confusions: Int[np.ndarray, "pairs 3"]

    @property
    def worst(self) -> Int[np.ndarray, " found"]:
        """The classes that have images, those of the lowest recall first; of equals the one with most images."""
        order = np.lexsort((-self.counts, np.where(self.counts > 0, self.per_class, np.inf)))
        return order[: int((self.counts > 0).sum())]


def accuracy(ranked: Int[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], num_classes: int) -> Accuracy:
    """Counts how often the right class stands first, or among the first five.

    Args:
      ranked: classes of each image, best first; -1 where there are no more.
      labels: the right ones, from 0 to num_classes - 1.

    Raises:
      ValueError: if there are no images, or a label is not a class.
    """
    if not len(labels):
        raise ValueError("accuracy needs at least one image with a label, found none")
    if labels.min() < 0 or labels.max() >= num_classes:
        found = f"{labels.min()} to {labels.max()}"
        raise ValueError(f"labels must be from 0 to {num_classes - 1}, the last class; found {found}")
    right = ranked == labels[:, None]
    counts = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels[right[:, 0]], minlength=num_classes)
    with np.errstate(invalid="ignore"):
        per_class = hits / counts
    pairs = np.stack([labels, ranked[:, 0]], axis=1)[~right[:, 0]]
    pairs, times = np.unique(pairs.reshape(-1, 2), axis=0, return_counts=True)
    confusions = np.column_stack([pairs, times])[np.argsort(-times, kind="stable")]
    return Accuracy(
        top1=float(right[:, 0].mean()),
        top5=float(right[:, :5].any(axis=1).mean()),
        mean_per_class=float(np.nanmean(per_class)),
        per_class=per_class,
        counts=counts,
        confusions=confusions.astype(np.int64),
    )
