"""LiT: trains a random text tower on a frozen image tower (Zhai et al. 2022; "SigLiT" in Zhai et al. 2023).

Every image is embedded once, before the first step; a step then computes the text tower only.
"""

from siglip_jax.training.recipe import Optimizer, Recipe, Schedule

RECIPE = Recipe(
    fresh="text_model/.*|logit_.*",
    locked_images=True,
    batch_size=4096,
    duration="10 epochs",
    optimizer=Optimizer(
        rate=1e-3, weight_decay=1e-4, rates=(("vision_model/.*", 0.0), (".*", 1.0)), beta2=0.95, clip_norm=1.0
    ),
    schedule=Schedule("cosine", warmup="10 percent"),
)
