"""Stages of a run: where they begin, and that a killed run ends with the bits of one that was not."""

import numpy as np
import pytest

import siglip_jax
from siglip_jax.training import RECIPES, Late, Recipe, SelfDistillation
from siglip_jax.training.stages import stages_of
from tests.support.pairs import write_pairs
from tests.support.staged_run import STEPS, TEACHER_FROM, run_until_done
from tests.support.tiny_checkpoint import write_checkpoint

KILLS = 1


def test_the_recipe_of_siglip2_has_its_teacher_from_80_percent_on():
    first, second = stages_of(RECIPES["siglip2"], examples=10**9)
    steps = round(40e9 / 32_768)
    assert (first.start, first.end, second.end) == (0, second.start, steps)
    assert second.start == round(0.8 * steps)
    assert (first.recipe.self_distillation.used, second.recipe.self_distillation.used) == (False, True)
    assert second.recipe == RECIPES["siglip2"]
    assert first.recipe.captioning == second.recipe.captioning


def test_a_late_change_is_a_stage_of_its_own():
    recipe = Recipe(
        batch_size=10,
        duration="2 epochs",
        self_distillation=SelfDistillation(weight=1.0, start="50 examples"),
        late=Late(start="1 epoch", resolution=384),
    )
    found = stages_of(recipe, examples=100)
    assert [(stage.start, stage.end) for stage in found] == [(0, 5), (5, 10), (10, 20)]
    assert [stage.recipe.self_distillation.used for stage in found] == [False, True, True]
    assert [stage.recipe.late.resolution for stage in found] == [None, None, 384]


def test_a_run_without_changes_has_one_stage():
    (only,) = stages_of(Recipe(duration="7 steps"), examples=100)
    assert only == (Recipe(duration="7 steps"), 0, 7)


def test_a_stage_that_never_starts_is_refused():
    recipe = Recipe(duration="7 steps", late=Late(start="7 steps", resolution=384))
    with pytest.raises(ValueError, match=r"late.start must be before the end of the run, 7 steps, got '?7 steps"):
        stages_of(recipe, examples=100)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A model, data, compiled programs, and the uninterrupted run."""
    home = tmp_path_factory.mktemp("stages")
    model, data = write_checkpoint(home / "model", text_length=16), write_pairs(home / "pairs", 1)
    assert run_until_done((model, data, home / "whole"), home / "cache") == 0
    return home, model, data


@pytest.mark.slow
def test_killed_runs_end_like_the_whole_one(setting):
    home, model, data = setting
    killed = run_until_done((model, data, home / "killed"), home / "cache", KILLS, longest=0.8)
    assert killed == KILLS
    with np.load(home / "whole" / "final.npz") as whole, np.load(home / "killed" / "final.npz") as found:
        assert whole.files == found.files
        for name in whole.files:
            np.testing.assert_array_equal(found[name], whole[name], name)
        groups = {name.split("['")[1].partition("']")[0] for name in whole.files if name.count("['")}
    expected = {"decoder", "distillation_head", "masked_head", "mask_token", "teacher", "vision_model"}
    assert expected <= groups
    assert (home / "killed" / "log.jsonl").read_text().count(f'"step": {STEPS},') == 1


@pytest.mark.slow
def test_what_the_stages_made(setting):
    home, _, _ = setting
    lines = (home / "whole" / "log.jsonl").read_text().splitlines()
    with_teacher = [number for number, line in enumerate(lines, 1) if "distillation_loss" in line]
    assert with_teacher == list(range(TEACHER_FROM + 1, STEPS + 1))
    assert all("captioning_loss" in line for line in lines)
    with np.load(home / "whole" / "final.npz") as arrays:
        table = "['vision_model']['embeddings']['position_embedding']['embedding']"
        tables = {name: arrays[name].shape[0] for name in arrays.files if name.endswith(table)}
        counts = {int(arrays[name]) for name in arrays.files if name.endswith(".count")}
    assert list(tables.values()) == [9] * 5  # of the tower, its moving average, its teacher, and both moments
    assert counts == {STEPS}
    model = siglip_jax.load(home / "whole" / "model")
    assert model.config.vision_config.image_size == 24
    assert sorted(model.params) == ["logit_bias", "logit_scale", "text_model", "vision_model"]
    assert model.processor.image_processor.size == {"height": 24, "width": 24}
