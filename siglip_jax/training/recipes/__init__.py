"""Named recipes, one file each: the docstring describes the recipe, and `RECIPE` is its value.

A new recipe is a new file in this folder; the command line, its help and this table find it.
"""

import importlib
import pkgutil

from siglip_jax.training.recipe import Recipe

__all__ = ["ABOUT", "RECIPES"]

_FILES = {
    file.name.replace("_", "-"): importlib.import_module(f"{__name__}.{file.name}")
    for file in pkgutil.iter_modules(__path__)
}

RECIPES: dict[str, Recipe] = {name: file.RECIPE for name, file in _FILES.items()}
"""Recipes by name; change one with `dataclasses.replace(RECIPES["finetune"], batch_size=64)`."""

ABOUT: dict[str, str] = {name: file.__doc__ or "" for name, file in _FILES.items()}
"""Description of each recipe, by name."""
