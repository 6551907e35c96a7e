"""Training: `train` does the job of `siglip-jax train`; recipes and objectives can be used alone.

The extra `train` installs the packages that training needs.
"""

from typing import TYPE_CHECKING

from siglip_jax._lazy import make_lazy
from siglip_jax.training.naflex import Naflex
from siglip_jax.training.recipe import Lora, MeshShape, Optimizer, Recipe, Schedule
from siglip_jax.training.recipes import RECIPES
from siglip_jax.training.terms import Captioning, Curation, Growth, Late, SelfDistillation

if TYPE_CHECKING:
    from siglip_jax.training.allocator import keep_freed_memory
    from siglip_jax.training.joint import JointPairs
    from siglip_jax.training.objective import Labels, Objective, Pairs
    from siglip_jax.training.plan import dry_run
    from siglip_jax.training.run import Run, train
    from siglip_jax.training.views import random_views

__all__ = [
    "RECIPES",
    "Captioning",
    "Curation",
    "Growth",
    "JointPairs",
    "Labels",
    "Late",
    "Lora",
    "MeshShape",
    "Naflex",
    "Objective",
    "Optimizer",
    "Pairs",
    "Recipe",
    "Run",
    "Schedule",
    "SelfDistillation",
    "dry_run",
    "keep_freed_memory",
    "random_views",
    "train",
]

make_lazy(
    __name__,
    {
        "JointPairs": "siglip_jax.training.joint",
        "Labels": "siglip_jax.training.objective",
        "Objective": "siglip_jax.training.objective",
        "Pairs": "siglip_jax.training.objective",
        "Run": "siglip_jax.training.run",
        "dry_run": "siglip_jax.training.plan",
        "keep_freed_memory": "siglip_jax.training.allocator",
        "random_views": "siglip_jax.training.views",
        "train": "siglip_jax.training.run",
    },
)
