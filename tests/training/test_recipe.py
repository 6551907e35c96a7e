"""Durations in three units, and recipes that cannot be meant are refused with both values."""

import dataclasses

import pytest

from siglip_jax.models.cost import mesh_memory
from siglip_jax.training.durations import steps_of
from siglip_jax.training.recipe import Lora, Recipe
from siglip_jax.training.recipes import ABOUT, RECIPES


@pytest.mark.parametrize(
    ("text", "steps"),
    [("500 steps", 500), ("1 step", 1), ("2 epochs", 25), ("0.1 epochs", 1), ("1e3 examples", 12), ("0 steps", 0)],
)
def test_durations(text, steps):
    assert steps_of(text, batch_size=80, examples=1000) == steps


def test_a_percentage_is_of_the_run():
    assert steps_of("5 percent", batch_size=8, examples=100, total=200) == 10
    assert steps_of("2.5%", batch_size=8, examples=100, total=200) == 5
    with pytest.raises(ValueError, match="must be in steps, epochs or examples, got '5 %'"):
        steps_of("5 %", batch_size=8, examples=100)


@pytest.mark.parametrize("text", ["5", "five steps", "5 parsecs", "-1 steps", "1.2.3 steps", ""])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match=f"a duration must be like '5000 steps'.*, got {text!r}"):
        Recipe(duration=text)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 10, "micro_batches": 4}, "micro_batches must divide batch_size, got 4 and 10"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (
            {"locked_images": True, "task": "labels"},
            "locked_images must be False unless task='pairs', got True with task='labels'",
        ),
        ({"locked_images": True, "augment": "crop"}, "augment must be 'none' with locked_images, .*, got 'crop'"),
        (
            {"equal_texts_match": True, "loss": "softmax"},
            "equal_texts_match .* got True with task='pairs' and loss='softmax'",
        ),
        ({"equal_texts_match": True, "task": "labels"}, "equal_texts_match must be False unless task='pairs'"),
        ({"lora": Lora(rank=2), "scan_layers": True}, "scan_layers must be False with lora, got True"),
        ({"lora": Lora(rank=-1)}, "lora.rank must be 0 or more, got -1"),
    ],
)
def test_recipes_that_cannot_be_meant_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Recipe(**changes)


def test_every_recipe_says_what_it_is():
    assert RECIPES.keys() == ABOUT.keys()
    for name, recipe in RECIPES.items():
        assert ABOUT[name].strip(), name
        assert dataclasses.replace(recipe, seed=1) != recipe


@pytest.mark.parametrize("name", ["google/siglip-base-patch16-224", "google/siglip-so400m-patch14-384"])
def test_lora_fits_an_accelerator_of_16_gib(name):
    recipe = RECIPES["lora"]
    options = {"dtype": recipe.dtype, "remat": recipe.remat}
    needed = mesh_memory(name, {}, recipe.batch_size // recipe.micro_batches, **options)["training_step"]
    frozen = needed["gradients"] + needed["moments"]  # the weights have none
    assert needed["total"] - frozen < 16 * 2**30
