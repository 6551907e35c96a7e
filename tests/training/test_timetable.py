"""Where the stages of a run begin, which examples they take, and the rate of every step."""

import dataclasses
import math

import numpy as np
import pytest

from siglip_jax.training import RECIPES, Growth, Late, Naflex, Recipe, Schedule, SelfDistillation
from siglip_jax.training.timetable import timetable_of

IMAGENET = 1_281_167


def test_the_recipe_of_siglip2_has_its_teacher_from_80_percent_on():
    first, second = timetable_of(RECIPES["siglip2"], examples=10**9).stages
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
    found = timetable_of(recipe, examples=100).stages
    assert [(stage.start, stage.end, stage.before) for stage in found] == [(0, 5, 0), (5, 10, 50), (10, 20, 100)]
    assert [stage.recipe.self_distillation.used for stage in found] == [False, True, True]
    assert [stage.recipe.late.resolution for stage in found] == [None, None, 384]


def test_a_run_without_changes_has_one_stage():
    (only,) = timetable_of(Recipe(duration="7 steps"), examples=100).stages
    assert only[:4] == (Recipe(duration="7 steps"), 0, 7, 0)


def test_a_stage_that_never_starts_is_refused():
    recipe = Recipe(duration="7 steps", late=Late(start="7 steps", resolution=384))
    with pytest.raises(ValueError, match=r"late.start must be before the end of the run, 7 steps, got '?7 steps"):
        timetable_of(recipe, examples=100)


def test_openvision_has_the_published_steps_and_rates():
    found = timetable_of(RECIPES["openvision"], examples=10**9)
    batches = (32_768, 16_384, 8_192)
    steps = [round(epochs * IMAGENET / batch) for epochs, batch in zip((10_000, 800, 200), batches, strict=True)]
    starts = np.cumsum([0, *steps]).tolist()
    assert [(stage.start, stage.end) for stage in found.stages] == list(zip(starts, starts[1:], strict=False))
    assert [stage.recipe.resolution for stage in found.stages] == [160, 224, 384]
    assert [stage.recipe.batch_size for stage in found.stages] == list(batches)
    before = np.cumsum([0, *(n * batch for n, batch in zip(steps, batches, strict=True))]).tolist()
    assert [*(stage.before for stage in found.stages), found.examples] == before
    # `config.lr` is the base rate times 64 times the batches of 16,384; `config.wd` is 0.2, times the rate.
    peaks = [8e-6 * 64 * 2, 4e-7 * 64 * 1, 1e-7 * 64 * 0.5]
    warmups = [round(40 * IMAGENET / batches[0]), round(20 * IMAGENET / batches[1]), 0]
    for stage, start, length, peak, warmup in zip(found.stages, starts, steps, peaks, warmups, strict=False):
        assert stage.recipe.optimizer.weight_decay == pytest.approx(0.2 * peak)
        for step in (0, warmup // 2, warmup, (length + warmup) // 2, length - 1):
            cosine = 0.5 * (1 + math.cos(math.pi * max(step - warmup, 0) / (length - warmup)))
            expected = peak * cosine * (min(step / warmup, 1.0) if warmup else 1.0)
            assert peaks[0] * found.factor(start + step) == pytest.approx(expected, rel=1e-5, abs=1e-7 * peak)


def test_the_end_of_a_run_is_stretched_with_its_schedule():
    plain = Recipe(
        batch_size=16,
        duration="1000 steps",
        schedule=Schedule("cosine", warmup="100 steps"),
        naflex=Naflex(lengths=(4, 8), full_batch=4),
        self_distillation=SelfDistillation(weight=1.0, start="80 percent"),
    )
    whole = dataclasses.replace(plain, late=Late(start="90 percent", naflex=True, stretch=3.75))
    base, found = timetable_of(plain, examples=100), timetable_of(whole, examples=100)
    assert [(stage.start, stage.end) for stage in found.stages] == [(0, 800), (800, 900), (900, 1275)]
    assert [stage.recipe.self_distillation.used for stage in found.stages] == [False, True, False]
    assert found.examples == 900 * 16 + 375 * 12  # of every two steps the longer one has half of the examples
    for step in (50, 899, 900):
        assert found.factor(step) == base.factor(step)
    for after in (15, 150, 375):
        assert found.factor(900 + after) == pytest.approx(base.factor(900 + after * 4 // 15), rel=1e-6, abs=1e-9)


def test_epochs_count_the_examples_of_steps_of_several_lengths():
    recipe = Recipe(batch_size=16, duration="6 epochs", naflex=Naflex(lengths=(4, 8), full_batch=4))
    found = timetable_of(recipe, examples=100, flexible=True)
    assert (found.steps, found.examples) == (50, 600)


GROWTH = Growth((24,), durations=("2 steps",), batch_sizes=(4,), rates=(1e-4,), warmups=("0 steps",))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"growth": GROWTH, "late": Late(resolution=24)}, "growth must be left out with late, self_distillation and"),
        ({"growth": GROWTH, "locked_images": True}, "growth must be left out with locked_images"),
        ({"late": Late(naflex=True), "positions": "sincos"}, "late.naflex must be False unless"),
        ({"late": Late(naflex=True), "task": "labels"}, "late.naflex must be False unless"),
    ],
)
def test_changes_that_do_not_fit_together(fields, said):
    with pytest.raises(ValueError, match=said):
        Recipe(**fields)


def test_options_of_changes_that_are_refused():
    with pytest.raises(ValueError, match=r"growth.rates must have a value for each of the 1 stages of growth.resoluti"):
        Growth((24,), durations=("2 steps",), batch_sizes=(4,), rates=(), warmups=("0 steps",))
    with pytest.raises(ValueError, match="growth.batch_sizes must be above 0, got 0"):
        dataclasses.replace(GROWTH, batch_sizes=(0,))
    with pytest.raises(ValueError, match="late.patch_size must be None with late.naflex, got 14"):
        Late(naflex=True, patch_size=14)
    with pytest.raises(ValueError, match=r"late.stretch must be 1 where nothing changes, got 2.0"):
        Late(stretch=2.0)
