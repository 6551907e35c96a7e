"""Inference: loading, the engine, the pipeline, explanations, servers, export, quantization, verification, speed."""

from typing import TYPE_CHECKING

from siglip_jax._lazy import make_lazy
from siglip_jax.inference.batcher import Batcher, QueueFullError
from siglip_jax.inference.calibration import Calibration
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.load import load
from siglip_jax.inference.pipeline import ImageClassificationPipeline, ZeroShotImageClassificationPipeline, pipeline

if TYPE_CHECKING:
    from siglip_jax.inference.bench import bench
    from siglip_jax.inference.describe import describe_model
    from siglip_jax.inference.diagnose import Diagnosis, Spot, diagnose
    from siglip_jax.inference.explain import Explanation, explain
    from siglip_jax.inference.export import export
    from siglip_jax.inference.quantize import quantize_checkpoint
    from siglip_jax.inference.verify import Verification, verify_model

__all__ = [
    "Batcher",
    "Calibration",
    "Diagnosis",
    "Explanation",
    "ImageClassificationPipeline",
    "QueueFullError",
    "Siglip",
    "Spot",
    "Verification",
    "ZeroShotImageClassificationPipeline",
    "bench",
    "describe_model",
    "diagnose",
    "explain",
    "export",
    "load",
    "pipeline",
    "quantize_checkpoint",
    "verify_model",
]

make_lazy(
    __name__,
    {
        "Diagnosis": "siglip_jax.inference.diagnose",
        "Explanation": "siglip_jax.inference.explain",
        "Spot": "siglip_jax.inference.diagnose",
        "Verification": "siglip_jax.inference.verify",
        "bench": "siglip_jax.inference.bench",
        "describe_model": "siglip_jax.inference.describe",
        "diagnose": "siglip_jax.inference.diagnose",
        "explain": "siglip_jax.inference.explain",
        "export": "siglip_jax.inference.export",
        "quantize_checkpoint": "siglip_jax.inference.quantize",
        "verify_model": "siglip_jax.inference.verify",
    },
)
