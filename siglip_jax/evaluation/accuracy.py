"""Accuracy of a classification over all images and per class, and the confusions of classes."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Metrics of a classification, from 0 to 1.

    Attributes:
      top1: share of the images whose class is predicted first.
      top5: share of the images whose class is among the first five predictions.
      mean_per_class: mean recall of the classes that have images.
      per_class: recall of each class, (classes,); NaN for a class without images.
      counts: number of images of each class, (classes,).
      confusions: rows of (class, predicted class, number of images) for wrong predictions, (pairs, 3), most images
        first.
    """

    top1: float
    top5: float
    mean_per_class: float
    per_class: Float[np.ndarray, " classes"]
    counts: Int[np.ndarray, " classes"]
    confusions: Int[np.ndarray, "pairs 3"]

    @property
    def worst(self) -> Int[np.ndarray, " found"]:
        """Indices of the classes that have images, lowest recall first; ties are broken by the number of images."""
        order = np.lexsort((-self.counts, np.where(self.counts > 0, self.per_class, np.inf)))
        return order[: int((self.counts > 0).sum())]


def accuracy(ranked: Int[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], num_classes: int) -> Accuracy:
    """Returns how often the right class is predicted first, or among the first five.

    Args:
      ranked: predicted classes of each image, (n, k), best first; -1 where there are no more.
      labels: class of each image, (n,), from 0 to num_classes - 1.
      num_classes: number of classes.

    Raises:
      ValueError: if there are no images, or a label is not a class.
    """
    if not len(labels):
        raise ValueError("images with a label must be one or more, got none")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be from 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}")
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
