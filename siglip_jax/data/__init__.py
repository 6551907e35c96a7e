"""Data sets on disk: sources of examples, the transform from an example to arrays, and batches for training."""

from typing import TYPE_CHECKING

from siglip_jax._lazy import make_lazy
from siglip_jax.data.example import Example, Source

if TYPE_CHECKING:
    from siglip_jax.data.open import open_source
    from siglip_jax.data.pipeline import Batch, Pipeline
    from siglip_jax.data.sources.masks import open_masks
    from siglip_jax.data.transform import Transform

__all__ = ["Batch", "Example", "Pipeline", "Source", "Transform", "open_masks", "open_source"]

make_lazy(
    __name__,
    {
        "Batch": "siglip_jax.data.pipeline",
        "Pipeline": "siglip_jax.data.pipeline",
        "Transform": "siglip_jax.data.transform",
        "open_masks": "siglip_jax.data.sources.masks",
        "open_source": "siglip_jax.data.open",
    },
)
