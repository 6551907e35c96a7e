"""Trains both towers as SigLIP 2 was (Tschannen et al. 2025): sigmoid and captioning loss, from 80 % with a teacher.

40 billion examples in batches of 32,768 with AdamW, rate 1e-3, decay 1e-4. From 80 % on the outputs of a moving average
of the image tower are further targets. --late.resolution and --late.patch-size change the image tower at 95 %, as for
each published resolution. The decoder, the teacher and the heads are in the checkpoints, not in the model.
"""

from siglip_jax.training.recipe import MeshShape, Optimizer, Recipe, Schedule
from siglip_jax.training.terms import Captioning, SelfDistillation

RECIPE = Recipe(
    fresh=".*",
    batch_size=32_768,
    duration="40e9 examples",
    optimizer=Optimizer(rate=1e-3, weight_decay=1e-4, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("cosine", warmup="20000 steps"),
    captioning=Captioning(weight=1.0),
    self_distillation=SelfDistillation(weight=1.0, masked_weight=0.25, start="80 percent"),
    dtype="bfloat16",
    remat="full",
    scan_layers=True,
    mesh=MeshShape(data=-1),
)
