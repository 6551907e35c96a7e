"""Accumulated gradients are those of the whole batch, on one device and on several; non-finite steps change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siglip_jax import make_mesh
from siglip_jax.models.elementwise import normalize
from siglip_jax.parallel import global_batch
from siglip_jax.parallel.mesh import AXES
from siglip_jax.parallel.sharding import shard_params
from siglip_jax.params import LOGITS, flatten
from siglip_jax.training.objective import Pairs, fingerprints
from siglip_jax.training.optimizer import make_optimizer, treatments
from siglip_jax.training.recipe import Optimizer
from siglip_jax.training.step import Step, init_state, make_step
from tests.support import steps

BATCH = 32
SGD = optax.sgd(0.1)


def gradients(model, params, batch, parts, mesh=None, **fields):
    """Returns loss and gradients of what a step would do, by path, and the metrics."""
    objective = Pairs(model, steps.to_float, mesh=mesh, **fields)
    step = Step(objective, SGD, micro_batches=parts, mesh=mesh)
    if mesh is not None:
        params, batch = shard_params(params, mesh), global_batch(batch, mesh)
    outputs = jax.jit(step.gradients)(params, {}, batch, jax.random.key(0))
    loss, metrics, found = jax.device_get(outputs)  # or each comparison would compile programs of its own
    return loss, flatten(found), metrics


def four_devices():
    axis_types = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((2, 2, 1), AXES, devices=jax.devices()[:4], axis_types=axis_types)


@pytest.fixture(scope="module")
def whole():
    """The model's own loss and its gradient, without anything of the trainer."""
    model, params = steps.make_model(scan_layers=True)
    batch = steps.make_batch(BATCH)
    pixels = steps.to_float(None, jnp.asarray(batch["pixels"]))

    def loss(params):
        return model.apply({"params": params}, batch["input_ids"], pixels, return_loss=True).loss

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    return model, params, batch, value, flatten(jax.device_get(gradient))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_accumulated_gradients_are_those_of_the_large_batch(whole, parts, devices):
    """Temperature and bias included."""
    model, params, batch, value, expected = whole
    mesh = four_devices() if devices == 4 else None
    loss, found, metrics = gradients(model, params, batch, parts, mesh)
    np.testing.assert_allclose(loss, value, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss_positive"] + metrics["loss_negative"], loss, rtol=1e-6)
    assert found.keys() == expected.keys()
    largest = max(np.abs(x).max() for x in expected.values())
    for path, x in expected.items():
        scale = np.abs(x).max()
        if path.endswith("k_proj/bias") or path in LOGITS:  # nothing there but rounding, or large terms of both signs
            scale = largest
        # Sums in another order differ by this much; a factor or a part left out is far more.
        assert np.abs(found[path] - x).max() <= 3e-6 * scale, path


@pytest.mark.slow
def test_the_parts_of_the_loss(whole):
    model, params, batch, _, _ = whole
    _, _, metrics = gradients(model, params, batch, 1)
    pixels = steps.to_float(None, jnp.asarray(batch["pixels"]))
    out = jax.jit(lambda p: model.apply({"params": p}, batch["input_ids"], pixels))(params)
    own = np.diag(np.asarray(out.logits_per_image)).astype(np.float64)
    np.testing.assert_allclose(metrics["loss_positive"], np.log1p(np.exp(-own)).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["temperature"], np.exp(params["logit_scale"][0]), rtol=1e-6)


@pytest.mark.slow
def test_softmax_and_groups_accumulate_too(whole):
    model, params, batch, _, _ = whole
    groups = jnp.arange(BATCH, dtype=jnp.int32) // 2
    for fields, extra in (({"contrast": "softmax"}, {}), ({}, {"image_groups": groups, "text_groups": groups})):
        one, two = (gradients(model, params, batch | extra, parts, **fields) for parts in (1, 4))
        np.testing.assert_allclose(two[0], one[0], rtol=1e-6)
        largest = max(np.abs(x).max() for x in one[1].values())
        for path in ("text_model/head/kernel", "vision_model/head/probe", "logit_scale"):
            scale = largest if path in LOGITS else np.abs(one[1][path]).max()  # a sum of large terms of both signs
            assert np.abs(np.asarray(two[1][path] - one[1][path])).max() <= 2e-6 * scale, path


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "devices"), [(1, 1), (4, 4)])
def test_equal_texts_match_each_others_pictures(whole, optimized, parts, devices):
    model, params, batch, _, _ = whole
    ids = batch["input_ids"][np.arange(BATCH) // 3]  # each text for three images
    pixels = steps.to_float(None, jnp.asarray(batch["pixels"]))
    out = jax.jit(lambda p: model.apply({"params": p}, ids, pixels))(params)
    match = (ids[:, None] == ids[None]).all(axis=2)
    assert match.sum() == 10 * 9 + 4
    logits = np.asarray(out.logits_per_image, np.float64)
    expected = np.log1p(np.exp(np.where(match, -logits, logits))).sum() / BATCH
    mesh = four_devices() if devices == 4 else None
    loss, _, _ = gradients(model, params, batch | {"input_ids": ids}, parts, mesh, equal_texts_match=True)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_fingerprints_tell_rows_apart():
    rng = np.random.default_rng(0)
    rows = np.unique(rng.integers(1, 4, (6000, 9)).astype(np.int32), axis=0)  # alike but for a place or two
    rows = np.concatenate([rows, rows + np.int32(2**31 - 4), rows * 251999])
    found = np.asarray(fingerprints(jnp.asarray(rows)))
    assert found.dtype == np.int32 and len(np.unique(found)) == len(rows)
    np.testing.assert_array_equal(np.asarray(fingerprints(jnp.asarray(rows[::-1])))[::-1], found)


@pytest.mark.slow
def test_embeddings_made_before_take_the_place_of_pictures(whole):
    model, params, batch, value, _ = whole
    pixels = steps.to_float(None, jnp.asarray(batch["pixels"]))
    embeds = jax.jit(lambda p: normalize(model.apply({"params": p}, pixels, method="get_image_features")))(params)
    given = {"image_embeds": embeds, "input_ids": jnp.asarray(batch["input_ids"])}
    loss, found, _ = gradients(model, params, given, 2)
    np.testing.assert_allclose(loss, value, rtol=1e-6)
    assert not np.asarray(found["vision_model/head/probe"]).any()


@pytest.mark.slow
def test_a_step_over_a_mesh_is_that_of_one_device():
    model, params = steps.make_model(scan_layers=True)
    batch = steps.make_batch(8)
    options = Optimizer(name="adamw", epsilon=1e-3, average=0.5)  # with this epsilon a zero gradient stays zero
    _, one, _ = steps.one_step(model, params, batch, options)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    _, many, _ = steps.one_step(model, shard_params(params, mesh), global_batch(batch, mesh), options, mesh)
    moved = flatten(jax.device_get(many.trained))
    for path, x in flatten(jax.device_get(one.trained)).items():
        assert np.abs(moved[path] - x).max() <= 1e-6 * max(np.abs(x).max(), 1.0), path
    kernel = many.trained["vision_model"]["encoder"]["layers"]["mlp"]["fc1"]["kernel"]
    moments = [x for x in jax.tree.leaves(many.optimizer) if x.shape == kernel.shape and x.sharding == kernel.sharding]
    assert len(moments) >= 2  # the moments lie where their parameter lies
    assert flatten(many.average)["vision_model/encoder/layers/mlp/fc1/kernel"].sharding == kernel.sharding


@pytest.mark.slow
def test_the_average_starts_at_the_weights_and_not_at_their_past():
    model, params = steps.make_model(scan_layers=True)
    before, after, _ = steps.one_step(model, params, steps.make_batch(4), Optimizer(average=0.9))
    path = "text_model/head/kernel"
    old, new, average = (np.asarray(flatten(tree)[path]) for tree in (before.trained, after.trained, after.average))
    np.testing.assert_allclose(average, old + (1 - 1 / 11) * (new - old), atol=1e-7)


@pytest.mark.slow
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    model, params = steps.make_model(scan_layers=True)
    options = Optimizer(rate=0.1)
    optimizer = make_optimizer(options, treatments(options, flatten(params)), lambda step: 1.0)
    poisoned = Pairs(
        model, lambda key, pixels: jnp.where(pixels[:1, :1, :1, :1] == 7, jnp.nan, steps.to_float(key, pixels))
    )
    step = Step(poisoned, optimizer, average=0.9)
    state = init_state(jax.tree.map(jnp.array, params), lambda path: False, optimizer, True)
    call = make_step(step, state)
    good, bad = steps.make_batch(4), steps.make_batch(4)
    good["pixels"][0, 0, 0, 0], bad["pixels"][0, 0, 0, 0] = 0, 7
    state, _ = call(state, good)
    kept = jax.tree.map(np.array, (state.trained, state.average, state.optimizer))
    for times in (1, 2):
        state, metrics = call(state, bad)
        assert not np.isfinite(metrics["loss"])
        assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (1 + times, times, times)
        jax.tree.map(np.testing.assert_array_equal, kept, (state.trained, state.average, state.optimizer))
    state, _ = call(state, good)
    assert (int(state.skipped), int(state.skipped_in_a_row)) == (2, 0)
    assert not np.array_equal(kept[0]["logit_bias"], state.trained["logit_bias"])


def test_a_batch_that_cannot_be_cut_is_refused_with_its_numbers():
    model, params = steps.make_model(scan_layers=True)
    with pytest.raises(ValueError, match="must be a multiple of 1 devices x 4 micro-batches, got 6; change batch_size"):
        gradients(model, params, steps.make_batch(6), 4)
