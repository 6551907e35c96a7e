"""Evaluation of a model on a data set: zero-shot classification, retrieval, probes, neighbours and calibration."""

from siglip_jax.evaluation.calibrate import Calibrated, calibrate
from siglip_jax.evaluation.evaluate import evaluate_retrieval, evaluate_zero_shot, knn, linear_probe
from siglip_jax.evaluation.result import Options, Result

__all__ = [
    "Calibrated",
    "Options",
    "Result",
    "calibrate",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "knn",
    "linear_probe",
]
