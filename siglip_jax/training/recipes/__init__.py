"""Named recipes, to be used as they are or changed: `dataclasses.replace(RECIPES["finetune"], batch_size=64)`."""

from siglip_jax.training.recipe import Recipe
from siglip_jax.training.recipes import (
    classification,
    finetune,
    high_resolution,
    linear_probe,
    lit,
    lora,
    scratch_b16,
)

RECIPES: dict[str, Recipe] = {
    "scratch-b16": scratch_b16.RECIPE,
    "lit": lit.RECIPE,
    "finetune": finetune.RECIPE,
    "high-resolution": high_resolution.RECIPE,
    "lora": lora.RECIPE,
    "classification": classification.RECIPE,
    "linear-probe": linear_probe.RECIPE,
}

ABOUT: dict[str, str] = {
    "scratch-b16": scratch_b16.__doc__ or "",
    "lit": lit.__doc__ or "",
    "finetune": finetune.__doc__ or "",
    "high-resolution": high_resolution.__doc__ or "",
    "lora": lora.__doc__ or "",
    "classification": classification.__doc__ or "",
    "linear-probe": linear_probe.__doc__ or "",
}
