"""Inference: loading, the engine, the pipeline, batching for servers, export, quantization, verification, speed."""

from siglip_jax.inference.batcher import Batcher, QueueFullError
from siglip_jax.inference.bench import bench
from siglip_jax.inference.describe import describe_model
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.export import export
from siglip_jax.inference.load import load
from siglip_jax.inference.pipeline import ZeroShotImageClassificationPipeline, pipeline
from siglip_jax.inference.quantize import quantize_checkpoint
from siglip_jax.inference.verify import Verification, verify_model

__all__ = [
    "Batcher",
    "QueueFullError",
    "Siglip",
    "Verification",
    "ZeroShotImageClassificationPipeline",
    "bench",
    "describe_model",
    "export",
    "load",
    "pipeline",
    "quantize_checkpoint",
    "verify_model",
]
