"""Trains a new last layer on the frozen image tower, on images with labels."""

from siglip_jax.training.recipe import Optimizer, Recipe, Schedule

RECIPE = Recipe(
    task="labels",
    augment="flip",
    batch_size=128,
    duration="10 epochs",
    optimizer=Optimizer(
        rate=1e-2, weight_decay=0.0, rates=(("classifier/.*", 1.0), (".*", 0.0)), beta2=0.999, clip_norm=None
    ),
    schedule=Schedule("cosine"),
)
