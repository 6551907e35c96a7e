"""The parts of the ablation that can be checked without training."""

import numpy as np
import pytest

from research.pictograms.ablation import CONDITIONS, accuracy_among, patch_cover, stage_of, table_of


@pytest.mark.parametrize(("size", "rows"), [(64, 6), (64, 8), (10, 3)])
def test_cover_is_the_mean_opacity_within_each_patch(size, rows):
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 4)).astype(np.uint8)
    fine = np.repeat(np.repeat(images[..., 3] / 255, rows, axis=1), rows, axis=2)  # each pixel in rows x rows pieces
    expected = fine.reshape(3, rows, size, rows, size).mean(axis=(2, 4))
    np.testing.assert_allclose(patch_cover(images, rows), expected, rtol=1e-9)


def test_accuracy_is_among_names_of_a_group():
    names = [f"thing {i // 2}" for i in range(20)]  # every name twice
    own = np.eye(20)
    assert accuracy_among(own, names, 5, 40) == 100
    assert accuracy_among(-own, names, 5, 40) == 0
    first = np.tile(np.arange(20.0), (20, 1))  # the last name always wins: right for one image of a group
    assert accuracy_among(first, names, 5, 40) == pytest.approx(20)


def test_the_table_has_mean_and_deviation_of_each_metric():
    runs = {"sigmoid": [{"fluent3d": 1.0, "patches": 10.0}, {"fluent3d": 3.0, "patches": 10.0}]}
    head, row = table_of(runs).splitlines()
    assert head.split() == ["fluent3d", "patches"]
    assert row.split() == ["sigmoid", "2.0", "±", "1.4", "10.0", "±", "0.0"]


def test_every_condition_is_a_recipe_of_the_same_steps_and_batches():
    for condition in CONDITIONS.values():
        terms = {name: value for name, value in condition.items() if name != "curated"}
        stage = stage_of(40, **terms)
        assert (stage.recipe.duration, stage.recipe.batch_size) == ("40 steps", 128)
        assert stage.recipe.uses("captioning") == ("captioning" in condition)
        assert stage.recipe.uses("self_distillation") == ("self_distillation" in condition)
