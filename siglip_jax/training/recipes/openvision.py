"""Trains both towers as OpenVision (Li et al. 2025): softmax and captioning loss, images of 160, 224, 384 pixels.

Patches are averaged, and their positions are fixed. 12.8 billion examples in batches of 32,768 at the rate 1.024e-3,
a billion in batches of 16,384, and a quarter of one in batches of 8,192, with AdamW. The published S/16 reaches 63.5,
65.9 and 67.1 % on ImageNet.
"""

from siglip_jax.training.recipe import MeshShape, Optimizer, Recipe, Schedule
from siglip_jax.training.terms import Captioning, Growth

IMAGENET = 1_281_167  # images of ImageNet, in whose epochs the durations are published

RECIPE = Recipe(
    loss="softmax",
    fresh=".*",
    positions="sincos",
    average_pooling=True,
    resolution=160,
    augment="crop",
    batch_size=32_768,
    duration=f"{10_000 * IMAGENET} examples",
    optimizer=Optimizer(rate=1.024e-3, weight_decay=2.048e-4, beta2=0.95, clip_norm=None),
    schedule=Schedule("cosine", warmup=f"{40 * IMAGENET} examples"),
    captioning=Captioning(weight=2.0, layers=12, parallel=0.0),
    growth=Growth(
        resolutions=(224, 384),
        durations=(f"{800 * IMAGENET} examples", f"{200 * IMAGENET} examples"),
        batch_sizes=(16_384, 8_192),
        rates=(2.56e-5, 3.2e-6),
        warmups=(f"{20 * IMAGENET} examples", "0 steps"),
    ),
    dtype="bfloat16",
    remat="full",
    scan_layers=True,
    mesh=MeshShape(data=-1),
)
