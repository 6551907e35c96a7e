"""What a run starts from is what the checkpoint says, whatever the recipe does with it."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import siglip_jax
from siglip_jax import SiglipModel, SiglipProcessor, SiglipVisionModel
from siglip_jax.checkpoints import convert
from siglip_jax.data.open import open_source
from siglip_jax.data.pipeline import Pipeline
from siglip_jax.params import flatten
from siglip_jax.training.assembly import make_objective, make_plan, make_state
from siglip_jax.training.lora import merge
from siglip_jax.training.prepare import make_transform, prepare_model
from siglip_jax.training.recipe import Lora, Optimizer, Recipe
from siglip_jax.training.recipes import RECIPES
from siglip_jax.training.saving import identity_of, save_model, whole
from siglip_jax.training.step import make_step
from siglip_jax.training.terms import Curation
from tests.support.pairs import write_pairs
from tests.support.tiny_checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), text_length=16)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), 1)


def started(recipe, directory, pairs):
    """Returns the prepared model, its state, the step and the first batch."""
    model = prepare_model(recipe, directory)
    transform = make_transform(recipe, model.processor)
    pipeline = Pipeline([(open_source(pairs), 1.0)], transform, batch_size=recipe.batch_size)
    plan = make_plan(recipe, model.table, make_objective(recipe, model, transform, None), pipeline.examples, None)
    state = make_state(plan, model.params)
    batches = pipeline.batches()
    batch = next(batches)
    batches.close()
    return model, state, make_step(plan.step, state), batch.arrays


@pytest.mark.slow
@pytest.mark.parametrize("which", ["embedded", "tiny"])
def test_the_first_loss_is_the_models_own(which, tiny, pairs):
    """Nothing clamps or resets temperature or bias, and images and texts are prepared as for inference."""
    directory = siglip_jax.assets.BUNDLED_MODEL if which == "embedded" else tiny
    recipe = dataclasses.replace(RECIPES["finetune"], batch_size=8, duration="10 steps", scan_layers=True)
    _, state, step, batch = started(recipe, directory, pairs)
    before = float(state.trained["logit_scale"][0]), float(state.trained["logit_bias"][0])
    source, processor = open_source(pairs), SiglipProcessor.from_pretrained(directory)
    pixels = processor(images=[source[int(i)].image for i in batch["index"]])["pixel_values"]
    model, params = SiglipModel.from_pretrained(directory, param_dtype=jnp.float32)
    run = jax.jit(lambda p, pixels: model.apply({"params": p}, batch["input_ids"], pixels, return_loss=True).loss)
    expected = run(params, pixels)
    _, metrics = step(state, batch)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["temperature"], np.exp(before[0]), rtol=1e-6)
    assert float(metrics["bias"]) == before[1]


def test_temperature_and_bias_are_trained_in_float32_whatever_the_file_holds():
    model = prepare_model(RECIPES["finetune"], siglip_jax.assets.BUNDLED_MODEL)
    assert {x.dtype for x in jax.tree.leaves(model.params)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_low_rank_additions_change_nothing_at_first_and_fold_into_the_weights(tiny, pairs):
    changes = {"batch_size": 8, "duration": "2 steps", "dtype": "float32"}
    recipe = dataclasses.replace(RECIPES["lora"], **changes, lora=Lora(rank=3, alpha=6.0))
    model, state, step, batch = started(recipe, tiny, pairs)
    plain = flatten(SiglipModel.from_pretrained(tiny)[1])
    folded = flatten(whole(recipe, state.params))
    assert folded.keys() == plain.keys()
    for path, x in plain.items():
        np.testing.assert_array_equal(folded[path], x)
    frozen = jax.tree.map(np.array, state.frozen)
    for _ in range(2):
        state, _ = step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, state.frozen, frozen)
    additions = state.params["lora"]
    layer = additions["vision_model"]["head"]["attention"]["q_proj"]
    assert layer["a"].shape == (32, 3) and np.abs(layer["b"]).max() > 0
    objective = make_objective(recipe, model, make_transform(recipe, model.processor), None)
    embed = functools.partial(jax.jit(lambda batch, params: objective.embed(params, batch, jax.random.key(0))), batch)
    beside, inside = embed(state.params), embed(whole(recipe, state.params))
    for name, x in beside.items():
        np.testing.assert_allclose(inside[name], x, atol=2e-6)
        assert np.abs(x - embed(plain_params(state))[name]).max() > 1e-4  # the additions are seen
    kernel = "text_model/encoder/layers_0/mlp/fc1"
    part = flatten(additions)
    product = np.asarray(part[f"{kernel}/a"], np.float64) @ np.asarray(part[f"{kernel}/b"], np.float64) * 2
    found = flatten(merge(recipe.lora, state.frozen, additions))[f"{kernel}/kernel"]
    np.testing.assert_allclose(found, plain[f"{kernel}/kernel"] + product, atol=1e-7)


def plain_params(state):
    return {name: x for name, x in state.params.items() if name != "lora"}


@pytest.mark.slow
def test_another_resolution_resizes_positions_and_pictures(tiny, tmp_path):
    recipe = Recipe(resolution=48)
    model = prepare_model(recipe, tiny)
    positions = model.params["vision_model"]["embeddings"]["position_embedding"]["embedding"]
    assert positions.shape == (36, 32) and model.processor.image_processor.size == {"height": 48, "width": 48}
    save_model(tmp_path / "out", recipe, model, model.params)
    siglip = siglip_jax.load(tmp_path / "out")
    assert siglip.encode_image([np.zeros((30, 30, 3), np.uint8)]).shape == (1, 32)
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["size"]["height"] == 48


@pytest.mark.slow
def test_fresh_parameters_are_random_and_the_others_the_checkpoints(tiny):
    recipe = Recipe(fresh="text_model/.*|logit_.*", scan_layers=True)
    model = prepare_model(recipe, tiny)
    plain, found = flatten(SiglipModel.from_pretrained(tiny, scan_layers=True)[1]), flatten(model.params)
    same = {path for path, x in plain.items() if np.array_equal(found[path], x)}
    assert same == {path for path in plain if path.startswith("vision_model/")}
    np.testing.assert_allclose(found["logit_bias"], [-10.0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fresh": "decoder/.*"}, "matches no parameter; use a pattern for paths such as"),
        (
            {"locked_images": True},
            r"must freeze vision_model/.* got a factor other than 0; put the rule \('vision_model",
        ),
        (
            {"lora": Lora(rank=2, where="nothing")},
            "lora.where: 'nothing' matches no parameter; use a pattern for paths such as .*/q_proj",
        ),
        (
            {"optimizer": Optimizer(rates=(("lora/.*", 1.0), (".*", 0.0)))},
            "lora.rank must be 1 or more where optimizer.rates train low-rank additions, got 0; train the weights",
        ),
    ],
)
def test_recipes_that_do_not_fit_the_checkpoint_are_refused(tiny, changes, said):
    with pytest.raises(ValueError, match=said):
        prepare_model(Recipe(**changes), tiny)


@pytest.mark.slow
def test_a_tower_alone_is_refused(tiny, tmp_path):
    tower, params = SiglipVisionModel.from_pretrained(tiny)
    tower.save_pretrained(tmp_path / "tower", params)
    with pytest.raises(ValueError, match="must be a whole SigLIP model for task='pairs', got a SiglipVisionModel"):
        prepare_model(Recipe(), tmp_path / "tower")


def test_the_identity_is_json_and_leaves_the_devices_out():
    identity = identity_of(Recipe(), "base/")
    assert json.loads(json.dumps(identity)) == identity and "mesh" not in identity and identity["model"] == "base/"


@pytest.mark.slow
class TestSixteenBits:
    """Adam's second moment of a small gradient is zero in float16, and the step infinite."""

    @pytest.fixture(scope="class")
    @staticmethod
    def half(tiny, tmp_path_factory):
        directory = tmp_path_factory.mktemp("half") / "model"
        convert(tiny, directory, "huggingface", dtype="float16")
        return directory

    @pytest.mark.parametrize("name", sorted(RECIPES))
    def test_every_recipe_trains_in_float32(self, name, half):
        recipe = dataclasses.replace(RECIPES[name], fresh=None, resolution=None)
        if recipe.curation.teacher is not None:
            recipe = dataclasses.replace(recipe, curation=Curation(teacher=str(half)))
        labels = ("a", "b") if recipe.task == "labels" else ()
        dtypes = {path: x.dtype for path, x in flatten(prepare_model(recipe, half, labels=labels).params).items()}
        assert set(dtypes.values()) == {np.dtype(np.float32)}, dtypes

    def test_steps_on_it_are_finite(self, half, pairs):
        recipe = dataclasses.replace(RECIPES["finetune"], batch_size=8, duration="3 steps", scan_layers=True)
        _, state, step, batch = started(recipe, half, pairs)
        for _ in range(3):
            state, metrics = step(state, batch)
            assert np.isfinite(metrics["loss"])
        assert int(state.skipped) == 0
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.trained))
