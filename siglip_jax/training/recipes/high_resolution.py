"""Fine-tunes a checkpoint at a higher resolution: a hundredth of the rate, no decay (Zhai et al. 2023, section 4.2).

The position table is resized; --resolution sets the size of images in pixels.
"""

from siglip_jax.training.recipe import Optimizer, Recipe, Schedule

RECIPE = Recipe(
    resolution=384,
    batch_size=256,
    duration="2 epochs",
    optimizer=Optimizer(rate=1e-5, weight_decay=0.0, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("cosine", warmup="5 percent"),
    remat="full",
)
