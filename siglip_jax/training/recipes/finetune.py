"""Fine-tunes both towers of a checkpoint, with a small rate and without weight decay on pretrained weights.

Disabling the decay is what makes fine-tuning work (Zhai et al. 2023, figure 4). Temperature and bias start from the
checkpoint too.
"""

from siglip_jax.training.recipe import Optimizer, Recipe, Schedule

RECIPE = Recipe(
    batch_size=256,
    duration="10 epochs",
    optimizer=Optimizer(rate=1e-5, weight_decay=0.0, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("cosine", warmup="5 percent"),
)
