"""The largest batch that fits, and plots of plans."""

import dataclasses

import numpy as np
import PIL.Image
import pytest

from siglip_jax import SiglipModel
from siglip_jax.planning import largest_batches, plot_plan, search
from siglip_jax.training import RECIPES
from siglip_jax.training.setup import recipe_with
from tests.cli.test_plan import PLAN
from tests.support.plans import CONFIG

MEMORY = round(15.75 * 2**30)


def compiler(monkeypatch, fixed, each, curve=0.0):
    """Puts a compiler in place whose programs need `fixed` bytes and `each` for an example, by the policy."""
    calls = []

    def plan(model, topology, batch, recipe, **fields):
        rows = batch / 8
        needed = round(fixed + each[fields["remat"]] * rows + curve * rows**2)
        calls.append((fields["remat"], fields["mesh"]["fsdp"], batch))
        fields = {k: v for k, v in fields.items() if k != "examples"}
        recipe = recipe_with(recipe, {"batch_size": batch, **fields})
        mesh = {"data": 8 // fields["mesh"]["fsdp"], "fsdp": fields["mesh"]["fsdp"], "tensor": 1}
        slow = {None: 1.0, "dots_with_no_batch_dims": 1.1, "full": 1.4}[fields["remat"]]
        speed = 1000 / slow / (1 + 0.1 * mesh["fsdp"])
        made = dataclasses.replace(PLAN, recipe=recipe, mesh=mesh, needed=needed, fits=needed <= MEMORY)
        return dataclasses.replace(made, examples_per_second=speed if made.fits else None)

    monkeypatch.setattr(search, "plan", plan)
    return calls


EACH = {None: 50 * 2**20, "dots_with_no_batch_dims": 9 * 2**20, "full": 2.5 * 2**20}


@pytest.mark.parametrize("curve", [0.0, 30.0])
def test_the_largest_batches_are_found_in_a_few_compilations(monkeypatch, curve):
    fixed = 700 * 2**20
    calls = compiler(monkeypatch, fixed, EACH, curve)
    found = largest_batches(SiglipModel(CONFIG), "v5e:2x4", "scratch-b16", meshes=[{"fsdp": 1}, {"fsdp": 8}])
    assert len(found) == 6 and len(calls) <= 6 * search.COMPILES
    assert all(plan.fits for plan in found)
    for plan in found:
        each, rows = EACH[plan.recipe.remat], np.arange(8, 20_000, 8)
        best = rows[fixed + each * rows + curve * rows**2 <= MEMORY].max()
        assert 0.9 * best - 8 <= plan.recipe.batch_size / 8 <= best
    speeds = [plan.examples_per_second for plan in found]
    assert speeds == sorted(speeds, reverse=True)
    assert (found[0].recipe.remat, found[0].mesh["fsdp"]) == (None, 1)


def test_cases_in_which_nothing_fits_are_left_out(monkeypatch):
    calls = compiler(monkeypatch, 700 * 2**20, {**EACH, None: MEMORY})
    steps = []
    fields = {"meshes": [{"fsdp": 8}], "on_progress": lambda *x: steps.append(x)}
    found = largest_batches(SiglipModel(CONFIG), "v5e:2x4", "scratch-b16", **fields)
    assert [plan.recipe.remat for plan in found] == ["dots_with_no_batch_dims", "full"]
    assert steps == [(1, 3), (2, 3), (3, 3)] and calls


def drawn(file):
    return np.asarray(PIL.Image.open(file).convert("L"))


def test_plots(tmp_path):
    plot_plan(PLAN, tmp_path / "one.png")
    other = dataclasses.replace(PLAN, fits=False, seconds=None, exposed_seconds=None, arguments=None, collectives=())
    plot_plan(other, tmp_path / "refused.png")
    slow = dataclasses.replace(PLAN, recipe=dataclasses.replace(RECIPES["scratch-b16"], remat=None))
    figure = plot_plan([PLAN, slow], tmp_path / "several.png")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()][1].startswith("remat none")
    for name in ("one", "refused", "several"):
        assert drawn(tmp_path / f"{name}.png").std() > 10
    with pytest.raises(ValueError, match="plans must be at least one plan, got none"):
        plot_plan([])
