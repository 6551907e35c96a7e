"""Evaluations of the current weights of a run: compiled once, called at every checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from siglip_jax.data.example import Source
from siglip_jax.data.pipeline import ordered
from siglip_jax.data.transform import Transform
from siglip_jax.evaluation.evaluate import evaluate_retrieval, evaluate_zero_shot, zero_shot_names
from siglip_jax.evaluation.result import Options
from siglip_jax.inference.engine import Siglip
from siglip_jax.training.objective import Objective

BATCH = 64  # images of a step

Metrics = dict[str, float]
Evaluation = Callable[[Mapping[str, Any]], Metrics]


def pairs_evaluation(siglip: Siglip, source: Source, limit: int | None = None) -> Evaluation:
    """Returns the evaluation of a model of pairs: zero-shot accuracy if the source has classes, else retrieval.

    Args:
      siglip: model with parameters of the right shapes.
      source: data to evaluate on.
      limit: number of images to take, at even distances; None: all.

    Returns:
      A function from the parameters of the model to metrics by name.
    """
    options = Options(limit=limit)
    if source.classes:
        zero_shot_names(source)  # refused before the run and not at its first checkpoint

    def evaluate(params: Mapping[str, Any]) -> Metrics:
        current = siglip.with_params(dict(params))
        if source.classes:
            result = evaluate_zero_shot(current, source, options=options)
        else:
            result = evaluate_retrieval(current, source, options=options)
        return {name: float(value) for name, value in result.metrics.items()}

    return evaluate


def labels_evaluation(objective: Objective, classes: Sequence[str], source: Source, transform: Transform) -> Evaluation:
    """Returns the evaluation of a classifier: the share of images that it labels right.

    Args:
      objective: objective of the classifier.
      classes: names of the classes, in the order of the classifier's logits.
      source: data with classes to evaluate on.
      transform: makes images and labels of examples, without augmentation.

    Returns:
      A function from the parameters of the classifier to its `accuracy`.

    Raises:
      ValueError: if the source has no classes, or one that the classifier lacks.
    """
    unknown = [name for name in source.classes if name not in classes]
    if unknown or not source.classes:
        raise ValueError(f"the classes of the data must be among {', '.join(classes)}, got {unknown or 'none'}")
    number = np.array([list(classes).index(name) for name in source.classes])

    @jax.jit
    def predict(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        return jax.numpy.argmax(objective.embed(params, batch, jax.random.key(0)), axis=1)

    def evaluate(params: Mapping[str, Any]) -> Metrics:
        right = total = 0
        for batch in ordered(source, transform, BATCH):
            label = batch.arrays["label"]
            if label.max() >= len(number):
                raise ValueError(f"labels must be below {len(number)}, the number of classes, got {label.max()}")
            images = {name: x for name, x in batch.arrays.items() if name in ("pixels", "spatial_shapes")}
            padded = {n: np.concatenate([x, np.repeat(x[-1:], BATCH - len(x), axis=0)]) for n, x in images.items()}
            right += int((np.asarray(predict(params, padded))[: len(label)] == number[label]).sum())
            total += len(label)
        return {"accuracy": right / total}

    return evaluate
