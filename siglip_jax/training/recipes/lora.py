"""Trains low-rank additions to the matrices of both towers; fits an accelerator of 16 GiB (Hu et al. 2021).

Only the additions, the temperature and the bias are trained. The trained additions are folded into the weights. The
step computes in bfloat16 and recomputes the layers in the backward pass; the weights are float32.
"""

from siglip_jax.training.recipe import Lora, Optimizer, Recipe, Schedule

RECIPE = Recipe(
    batch_size=64,
    duration="10 epochs",
    optimizer=Optimizer(
        rate=2e-4,
        weight_decay=0.0,
        rates=(("lora/.*", 1.0), ("logit_.*", 1.0), (".*", 0.0)),
        decays=((".*", 0.0),),
        beta2=0.95,
        clip_norm=1.0,
    ),
    schedule=Schedule("cosine", warmup="5 percent"),
    lora=Lora(rank=16, alpha=16.0),
    dtype="bfloat16",
    remat="full",
)
