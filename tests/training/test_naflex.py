"""Training at variable resolution: steps of several lengths, whole and in pieces, on one device and over a mesh."""

import dataclasses
import functools

import jax
import numpy as np
import PIL.Image
import pytest

import siglip_jax
from siglip_jax.data.example import Example
from siglip_jax.params import flatten
from siglip_jax.training import Naflex, Recipe, dry_run, train
from siglip_jax.training.assembly import make_objective, make_plan, make_state
from siglip_jax.training.naflex import examples_per_step
from siglip_jax.training.prepare import make_transform, mesh_of, prepare_model
from siglip_jax.training.recipe import MeshShape
from siglip_jax.training.step import make_step
from tests.support.data_sets import saved
from tests.support.pairs import write_classes, write_pairs
from tests.support.tiny_checkpoint import picture, write_checkpoint

NAFLEX = Naflex(lengths=(6, 9, 16), full_batch=9)
FIELDS = {"naflex": NAFLEX, "batch_size": 16, "optimizer.rate": 1e-3, "optimizer.clip_norm": None}
SIZES = [(1, 1), (30, 8000), (8000, 30), (40, 30), (91, 17), (33, 33), (64, 20), (5, 7)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), text_length=16, flexible=True)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), 1)


def test_examples_of_a_step_keep_the_patches_level():
    assert Naflex().steps(64) == ((128, 64), (256, 64), (576, 64), (784, 64), (1024, 32))
    assert Naflex((128, 256, 1024), full_batch=128).steps(64) == ((128, 64), (256, 32), (1024, 8))
    assert examples_per_step(Naflex((128, 1024)).steps(3 * 2)) * 2 == 9
    with pytest.raises(ValueError, match="batch_size must be a multiple of 2 for sequences of 1024 patches"):
        Naflex().steps(3)
    for fields, said in (({"lengths": ()}, "one or more lengths"), ({"full_batch": 0}, "at least 1 patch")):
        with pytest.raises(ValueError, match=said):
            Naflex(**fields)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"resolution": 64}, "resolution must be None for a model of variable resolution, got 64; set naflex.lengths"),
        ({"micro_batches": 16}, "a step of 16 patches must have a multiple of 1 devices x 16 micro-batches, got 8"),
        ({"locked_images": True}, "locked_images must be False for a model of variable resolution"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(tiny, fields, said):
    with pytest.raises(ValueError, match=said):
        prepare_model(Recipe(naflex=NAFLEX, batch_size=16, **fields), tiny)


@functools.cache
def _batch(directory, length):
    """Returns a batch of images of all forms, and the recipe's transform."""
    processor = siglip_jax.SiglipProcessor.from_pretrained(directory)
    transform = make_transform(Recipe(), processor).at(length)
    images = [saved(PIL.Image.fromarray(picture(i, size))) for i, size in enumerate(SIZES)]
    rng = np.random.default_rng(0)
    rows = [transform.row(Example(image, (f"a cat {i}",), None, "x"), rng) for i, image in enumerate(images)]
    return transform.stack(rows)


@functools.cache
def _stepped(directory, length, **changes):
    """Returns metrics and parameters after a step on one batch."""
    recipe = Recipe(batch_size=8, naflex=Naflex((length,), full_batch=length), **changes)
    mesh = mesh_of(recipe) if "mesh" in changes else None
    model = prepare_model(recipe, directory, mesh=mesh)
    objective = make_objective(recipe, model, make_transform(recipe, model.processor), mesh)
    plan = make_plan(recipe, model.table, objective, 8, mesh)
    state = make_state(plan, model.params)
    batch = _batch(directory, length)
    if mesh is not None:
        batch = siglip_jax.parallel.global_batch(batch, mesh)
    state, metrics = make_step(plan.step, state)(state, batch)
    return {k: float(v) for k, v in metrics.items()}, {k: np.asarray(v) for k, v in flatten(state.params).items()}


@pytest.mark.slow
def test_images_of_any_form_have_a_finite_loss_and_gradient(tiny):
    length = 130  # more columns than the table of positions has
    metrics, params = _stepped(tiny, length)
    assert all(np.isfinite(value) for value in metrics.values()) and metrics["gradient_norm/vision_model"] > 0
    assert all(np.isfinite(x).all() for x in params.values())
    grids = _batch(tiny, length)["spatial_shapes"]
    np.testing.assert_allclose(metrics["padding"], 1 - grids.prod(axis=1).mean() / length, atol=1e-6)
    model, params = siglip_jax.Siglip2Model.from_pretrained(tiny)
    batch = _batch(tiny, length)
    processor = siglip_jax.SiglipProcessor.from_pretrained(tiny)
    inputs = processor.image_processor(
        [PIL.Image.fromarray(picture(i, size)) for i, size in enumerate(SIZES)], max_num_patches=length
    )
    loss = jax.jit(lambda params, ids, x: model.apply({"params": params}, ids, **x, return_loss=True).loss)
    np.testing.assert_allclose(metrics["loss"], loss(params, batch["input_ids"], dict(inputs)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"micro_batches": 4, "remat": "full", "scan_layers": True}, {"mesh": MeshShape(fsdp=2)}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_step_is_the_same_however_it_is_computed(tiny, changes):
    plain, _ = _stepped(tiny, 20)
    found, _ = _stepped(tiny, 20, **changes)
    for name in ("loss", "padding", "gradient_norm/vision_model", "gradient_norm/text_model"):
        np.testing.assert_allclose(found[name], plain[name], rtol=2e-5, err_msg=name)


@pytest.mark.slow
def test_a_run_compiles_one_step_for_each_length_and_resumes(tiny, pairs, tmp_path):
    fields = FIELDS | {"duration": "5 epochs"}
    plan = dry_run(pairs, tiny, **fields)
    assert plan["steps"] == 6 and plan["epochs"] == 5.0  # 16 + 16 + 8 examples in three steps, of 16
    assert [(row["patches"], row["examples"]) for row in plan["lengths"]] == [(6, 16), (9, 16), (16, 8)]
    assert plan["stages"][-1]["end"] == 6
    whole = train(pairs, tiny, tmp_path / "whole", log_every=1, evaluate=pairs, **fields)
    lines = [line for line in whole.metrics if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert sorted(line["patches"] for line in lines[:3]) == [6, 9, 16]
    assert all(np.isfinite(line["loss"]) for line in lines)
    shares = {line["patches"]: line["padding"] for line in lines}
    for row in plan["lengths"]:
        np.testing.assert_allclose(shares[row["patches"]], row["padding"], atol=1e-4)

    class Stopped(Exception):
        pass

    def stop(line):
        if line["step"] == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train(pairs, tiny, tmp_path / "again", log_every=1, save_every=2, on_metrics=stop, **fields)
    again = train(pairs, tiny, tmp_path / "again", log_every=1, save_every=2, **fields)
    assert again.steps == 6
    for path, x in flatten(whole.params).items():
        np.testing.assert_array_equal(flatten(again.params)[path], x, path)
    loaded = siglip_jax.load(tmp_path / "whole" / "model")
    assert isinstance(loaded.model, siglip_jax.Siglip2Model)
    assert np.isfinite(loaded.encode_image([PIL.Image.new("RGB", size) for size in SIZES[:3]])).all()


@pytest.mark.slow
def test_classifiers_and_low_rank_additions_are_trained(tiny, pairs, tmp_path):
    fields = FIELDS | {"naflex": Naflex((9,), full_batch=9), "duration": "2 steps", "log_every": 1}
    classes = write_classes(tmp_path / "classes", 1)
    run = train(classes, tiny, tmp_path / "labels", "classification", evaluate=classes, **fields)
    assert isinstance(run.model, siglip_jax.Siglip2ForImageClassification) and 0 <= run.metrics[-1]["accuracy"] <= 1
    lora = train(pairs, tiny, tmp_path / "lora", "lora", remat="full", **fields)
    assert all(np.isfinite(line["loss"]) for line in lora.metrics) and (tmp_path / "lora" / "adapter").is_dir()
    moved = flatten(lora.params)["vision_model/encoder/layers_0/self_attn/q_proj/kernel"]
    before = flatten(siglip_jax.Siglip2Model.from_pretrained(tiny)[1])
    assert (moved != before["vision_model/encoder/layers_0/self_attn/q_proj/kernel"]).any()


def test_the_lengths_are_part_of_the_recipe():
    assert dataclasses.asdict(Recipe())["naflex"] == {"lengths": (128, 256, 576, 784, 1024), "full_batch": 784}
