"""Trains an image classifier, the whole image tower and a new last layer, on images with labels."""

from siglip_jax.training.recipe import Optimizer, Recipe, Schedule

RECIPE = Recipe(
    task="labels",
    augment="crop_flip",
    batch_size=128,
    duration="10 epochs",
    optimizer=Optimizer(
        rate=1e-3, weight_decay=0.0, rates=(("classifier/.*", 1.0), (".*", 0.03)), beta2=0.999, clip_norm=1.0
    ),
    schedule=Schedule("cosine", warmup="5 percent"),
)
