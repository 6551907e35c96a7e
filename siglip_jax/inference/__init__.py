"""Inference: the engine behind `siglip_jax.load`, batching for servers, the zero-shot pipeline, and the picture of a
similarity matrix.
"""

from siglip_jax.inference.batcher import Batcher, QueueFullError
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.heatmap import plot_similarity
from siglip_jax.inference.loading import load
from siglip_jax.inference.pipeline import ZeroShotImageClassificationPipeline, pipeline

__all__ = [
    "Batcher",
    "QueueFullError",
    "Siglip",
    "ZeroShotImageClassificationPipeline",
    "load",
    "pipeline",
    "plot_similarity",
]
