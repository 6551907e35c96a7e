"""Inference: the engine behind `siglip_jax.load`, the zero-shot pipeline, and the picture of a similarity matrix."""

from siglip_jax.inference.engine import Siglip, load
from siglip_jax.inference.heatmap import plot_similarity
from siglip_jax.inference.pipeline import ZeroShotImageClassificationPipeline, pipeline

__all__ = ["Siglip", "ZeroShotImageClassificationPipeline", "load", "pipeline", "plot_similarity"]
