"""Trains a small model further on the pairs that a larger teacher chooses, as SigLIP 2 B (Tschannen et al. 2025, 2.5).

--curation.teacher names the teacher, which scores batches of 65,536; the half that the model can learn most from is
trained on (ACID, Udandarao et al. 2024): 4 billion examples at the rate 1e-5 without decay, sigmoid loss only.
"""

from siglip_jax.training.recipe import MeshShape, Optimizer, Recipe, Schedule
from siglip_jax.training.terms import Curation

RECIPE = Recipe(
    batch_size=32_768,
    duration="4e9 examples",
    optimizer=Optimizer(rate=1e-5, weight_decay=0.0, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("cosine", warmup="1 percent"),
    curation=Curation(teacher="", keep=0.5),
    dtype="bfloat16",
    remat="full",
    scan_layers=True,
    mesh=MeshShape(data=-1),
)
