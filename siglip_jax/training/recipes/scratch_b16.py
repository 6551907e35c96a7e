"""Trains both towers from random weights, as SigLIP B/16 was (Zhai et al. 2023, section 4.2 and appendix).

3 billion examples in batches of 16,384, rate 1e-3, decay 1e-4. Adafactor and AdamW are about equal: 70.1 and 70.3 % on
ImageNet.
"""

from siglip_jax.training.recipe import MeshShape, Optimizer, Recipe, Schedule

RECIPE = Recipe(
    fresh=".*",
    batch_size=16_384,
    duration="3e9 examples",
    optimizer=Optimizer(name="adafactor", rate=1e-3, weight_decay=1e-4, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("cosine", warmup="20000 steps"),
    dtype="bfloat16",
    remat="full",
    scan_layers=True,
    mesh=MeshShape(data=-1),
)
