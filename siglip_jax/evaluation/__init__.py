"""Evaluation of a model on a data set: zero-shot classification, retrieval, linear probe and nearest neighbours."""

from siglip_jax.evaluation.evaluate import evaluate_retrieval, evaluate_zero_shot, knn, linear_probe
from siglip_jax.evaluation.result import Options, Result

__all__ = ["Options", "Result", "evaluate_retrieval", "evaluate_zero_shot", "knn", "linear_probe"]
