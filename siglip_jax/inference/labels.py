"""Labels: validation, templates, embeddings, probabilities and ranking."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from siglip_jax._checks import check_choice
from siglip_jax.inference.stream import as_texts

FUNCTIONS = ("sigmoid", "softmax", "none")


def probabilities(
    cosines: Float[np.ndarray, "images texts"], temperature: float, logit_bias: float
) -> Float[np.ndarray, "images texts"]:
    """Returns sigmoid(temperature * cosine + logit_bias) in float32, accurate even for tiny probabilities.

    Source: "Sigmoid Loss for Language Image Pre-Training" (Zhai et al., 2023), section 3.2.

    Raises:
      ValueError: if the temperature or the bias is not finite in float32.
    """
    for name, value in (("exp(logit_scale)", temperature), ("logit_bias", logit_bias)):
        if not abs(value) <= float(np.finfo(np.float32).max):  # NaN too
            raise ValueError(f"{name} must be finite in float32, got {value:g}; check the weights")
    return label_scores(cosines.astype(np.float32) * np.float32(temperature) + np.float32(logit_bias), "sigmoid")


def rank(
    scores: Float[np.ndarray, " labels"],
    labels: tuple[str, ...],
    top_k: int | None = None,
    threshold: float | None = None,
) -> list[dict]:
    """Returns the labels with their scores, highest first; ties keep the order given.

    Args:
      scores: score of each label.
      labels: the labels.
      top_k: number of labels to return; None: all.
      threshold: score from which on a label is `accepted`, a further entry of the result; None: there is no such entry.
    """
    order = np.argsort(-scores, kind="stable")[:top_k]
    ranked = [{"label": labels[i], "score": float(scores[i])} for i in order]
    if threshold is not None:
        ranked = [entry | {"accepted": entry["score"] >= threshold} for entry in ranked]
    return ranked


def function_of(num_labels: int, problem_type: str | None) -> str:
    """Returns the function from the logits of a classifier to its scores, as the reference chooses it.

    Args:
      num_labels: number of labels.
      problem_type: `problem_type` of the configuration; None: not set.
    """
    if problem_type == "regression":
        return "none"
    return "sigmoid" if problem_type == "multi_label_classification" or num_labels == 1 else "softmax"


def label_scores(logits: Float[np.ndarray, "images labels"], function: str) -> Float[np.ndarray, "images labels"]:
    """Returns the scores of a classifier.

    Args:
      logits: float32 logits.
      function: "sigmoid", "softmax" or "none".

    Raises:
      ValueError: if the function is unknown.
    """
    check_choice("function_to_apply", function := str(function).lower(), FUNCTIONS)
    if function == "none":
        return logits
    if function == "softmax":
        small = np.exp(logits - logits.max(axis=1, keepdims=True))
        return small / small.sum(axis=1, keepdims=True)
    small = np.exp(-np.abs(logits))  # in (0, 1]: never overflows
    return np.where(logits < 0, small, np.float32(1)) / (1 + small)


def own_labels(config: Any) -> tuple[str, ...]:
    """Returns the names of a classifier's own labels, in the order of its logits.

    Args:
      config: configuration of the classifier.
    """
    return tuple(config.id2label[i] for i in range(config.num_labels))


def own_scores(logits: Float[np.ndarray, "images labels"], config: Any) -> Float[np.ndarray, "images labels"]:
    """Returns the scores of a classifier's own labels, by the function that its configuration stands for.

    Args:
      logits: float32 logits.
      config: configuration of the classifier.
    """
    return label_scores(logits, function_of(config.num_labels, config.problem_type))


def check_labels(labels: object) -> tuple[str, ...]:
    """Returns the labels as a tuple; warns if a single label has commas, where several may be meant.

    Raises:
      ValueError: if there are no labels, or one is blank or not a string.
    """
    names = as_texts(labels, "labels")
    if not names:
        raise ValueError("labels must name at least one label, got none; give labels such as 'a cat' 'a dog'")
    for i, name in enumerate(names):
        if not name.strip():
            raise ValueError(f"labels must not be blank, got {name!r} at position {i}; remove it")
    parts = [part.strip() for part in names[0].split(",")]
    if len(names) == 1 and len(parts) > 1 and all(parts):
        several = " ".join(repr(part) for part in parts)
        warnings.warn(
            f"{names[0]!r} is one label; if {len(parts)} are meant, give {several} each on its own", stacklevel=3
        )
    return names


def fill_template(template: str | None, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the template with each label in place of `{}`; without a template, the labels unchanged.

    Raises:
      ValueError: if the template has no `{}`, which would give all labels the same score.
    """
    if template is None:
        return labels
    if "{}" not in template:
        raise ValueError(f"template must have {{}} where the label goes, got {template!r}; write 'a photo of {{}}'")
    return tuple(template.replace("{}", label) for label in labels)


def ensemble(
    text_embeds: Float[np.ndarray, "texts embed"], counts: Sequence[int]
) -> Float[np.ndarray, "classes embed"]:
    """Returns the L2-normalised mean of the L2-normalised prompt embeddings of each class.

    Args:
      text_embeds: embeddings of the prompts, (texts, E), class by class.
      counts: number of prompts of each class, 1 or more.

    Returns:
      Embeddings of the classes, (classes, E) float32.

    Raises:
      ValueError: if the counts do not sum to the number of embeddings.
    """
    if not len(counts) or min(counts) < 1 or sum(counts) != len(text_embeds):
        raise ValueError(
            f"text embeddings must be {list(counts)[:5]} for the classes, {sum(counts)} in all, got {len(text_embeds)}"
        )
    starts = np.cumsum([0, *counts[:-1]])
    sums = np.add.reduceat(_normalized(text_embeds.astype(np.float64)), starts, axis=0)
    return _normalized(sums).astype(np.float32)


def _normalized(embeds: Float[np.ndarray, "rows embed"]) -> Float[np.ndarray, "rows embed"]:
    return embeds / np.maximum(np.linalg.norm(embeds, axis=1, keepdims=True), 1e-12)
