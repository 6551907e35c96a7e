"""Evaluation of a model on a data set: zero-shot classification, retrieval, segmentation, probes, calibration."""

from typing import TYPE_CHECKING

from siglip_jax._lazy import make_lazy
from siglip_jax.evaluation.calibrate import Calibrated, calibrate
from siglip_jax.evaluation.evaluate import evaluate_retrieval, evaluate_zero_shot, knn, linear_probe
from siglip_jax.evaluation.result import Options, Result

if TYPE_CHECKING:
    from siglip_jax.evaluation.segmentation import SegmentationResult, evaluate_segmentation

__all__ = [
    "Calibrated",
    "Options",
    "Result",
    "SegmentationResult",
    "calibrate",
    "evaluate_retrieval",
    "evaluate_segmentation",
    "evaluate_zero_shot",
    "knn",
    "linear_probe",
]

# Masks are read with the packages that read data sets.
_SEGMENTATION = ("SegmentationResult", "evaluate_segmentation")
make_lazy(__name__, dict.fromkeys(_SEGMENTATION, "siglip_jax.evaluation.segmentation"))
