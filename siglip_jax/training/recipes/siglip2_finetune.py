"""Fine-tunes a SigLIP 2 checkpoint with the losses that it was trained with: sigmoid, captioning, and a teacher.

The decoder and the heads, which were never released, start from random values and train at a hundred times the rate of
the towers; the published towers have no weight decay.
"""

from siglip_jax.training.recipe import Optimizer, Recipe, Schedule
from siglip_jax.training.terms import Captioning, SelfDistillation

RECIPE = Recipe(
    batch_size=256,
    duration="10 epochs",
    optimizer=Optimizer(
        rate=1e-5,
        weight_decay=0.0,
        rates=(("(decoder|distillation_head|masked_head|mask_token)(/.*)?", 100.0), (".*", 1.0)),
        decays=((".*", 0.0),),
        beta2=0.95,
        clip_norm=1.0,
    ),
    schedule=Schedule("cosine", warmup="5 percent"),
    captioning=Captioning(weight=1.0),
    self_distillation=SelfDistillation(weight=1.0, masked_weight=0.25),
    dtype="bfloat16",
    remat="full",
)
