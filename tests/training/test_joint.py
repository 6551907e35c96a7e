"""The joint objective of pairs, captions and a teacher: its sum, its gradients in pieces and over a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from siglip_jax import make_mesh
from siglip_jax.configs.configuration import SiglipVisionConfig
from siglip_jax.data.transform import normalize_pixels
from siglip_jax.models import SiglipVisionModel
from siglip_jax.parallel import global_batch
from siglip_jax.params import flatten, unflatten
from siglip_jax.training import Captioning, Objective, Recipe, SelfDistillation, joint
from siglip_jax.training.assembly import make_objective
from siglip_jax.training.joint import decoder_of, masked_patches
from siglip_jax.training.prepare import make_transform, prepare_model
from siglip_jax.training.step import Step, init_state
from tests.support.tiny_checkpoint import write_checkpoint

ROWS = 8
RECIPE = Recipe(
    batch_size=ROWS,
    captioning=Captioning(weight=0.5, layers=1, parallel=0.0, boxes=0.5),
    self_distillation=SelfDistillation(
        weight=1.0, masked_weight=0.25, views=2, view_size=16, prototypes=12, hidden=8, bottleneck=4
    ),
    scan_layers=True,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return prepare_model(RECIPE, write_checkpoint(tmp_path_factory.mktemp("joint"), text_length=16))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (ROWS, 32, 32, 3), np.uint8)
    ids = rng.integers(2, 40, (ROWS, 16), np.int32)
    ids[np.arange(16) > rng.integers(3, 15, (ROWS, 1))] = 1
    found = {"pixels": pixels, "input_ids": ids, "image_ids": np.arange(ROWS, dtype=np.int32)}
    weights = rng.uniform(0, 0.2, (ROWS, 2, 16)).astype(np.float32)
    weights[[0, 1, 2, 6]] = 0  # images without boxes: more of them in one piece, and on one device, than in others
    weights[..., :4] = 0
    return found | {"region_ids": rng.integers(2, 40, (ROWS, 2, 16), np.int32), "region_weights": weights}


@pytest.fixture
def same_views(monkeypatch):
    """Makes views and masks functions of the image alone, so that pieces and devices see the same ones."""

    def views(key, images, count, size, area):
        parts = [images[:, i : i + size, i : i + size] for i in range(count)]
        return jnp.stack([jax.image.resize(x, (*x.shape[:1], size, size, 3), "linear") for x in parts], axis=1)

    def mask(key, n, rows, columns, share):
        return jnp.broadcast_to((jnp.arange(rows * columns) % 2 == 0).reshape(rows, columns), (n, rows, columns))

    monkeypatch.setattr(joint, "random_views", views)
    monkeypatch.setattr(joint, "random_patch_mask", mask)


def gradients(model, batch, pieces=1, mesh=None):
    transform = make_transform(RECIPE, model.processor)
    module = model.module.clone(mesh=mesh)
    objective = make_objective(RECIPE, dataclasses.replace(model, module=module), transform, mesh)
    step = Step(objective, optax.sgd(0.1), pieces, mesh=mesh)
    flat = flatten(model.params)
    trained = unflatten({path: x for path, x in flat.items() if not model.table[path].frozen})
    frozen = unflatten({path: x for path, x in flat.items() if model.table[path].frozen})
    loss, metrics, found = jax.jit(step.gradients)(trained, frozen, batch, jax.random.key(0))
    return loss, metrics, flatten(found)


@pytest.mark.slow
def test_pieces_and_devices_change_neither_losses_nor_gradients(model, batch, same_views):
    loss, metrics, whole = gradients(model, batch)
    weighted = 0.5 * metrics["captioning_loss"] + 0.25 * (metrics["referring_loss"] + metrics["grounded_loss"])
    weighted += 0.25 * metrics["distillation_loss"] + 0.0625 * metrics["masked_loss"]
    np.testing.assert_allclose(loss, metrics["contrastive_loss"] + weighted, rtol=1e-6)
    assert {path.partition("/")[0] for path in whole} == {
        *("decoder", "distillation_head", "masked_head", "mask_token", "text_model", "vision_model"),
        *("logit_scale", "logit_bias"),
    }
    largest, mesh = max(np.abs(x).max() for x in whole.values()), make_mesh(data=4, fsdp=2)
    for other in (gradients(model, batch, pieces=2), gradients(model, global_batch(batch, mesh), mesh=mesh)):
        np.testing.assert_allclose(other[0], loss, rtol=1e-6)
        for name in ("teacher/distillation", "teacher/masked"):
            np.testing.assert_allclose(other[1][name], metrics[name], rtol=1e-5, atol=1e-6)
        for path, x in other[2].items():  # those of a key's bias are zero but for rounding
            scale = max(np.abs(whole[path]).max(), 1e-2 * largest)
            np.testing.assert_allclose(x, whole[path], rtol=1e-5, atol=1e-5 * scale, err_msg=path)


@pytest.mark.slow
def test_each_image_is_distilled_from_its_own_views(model, batch):
    """The loss of a row depends on no other row."""
    objective = make_objective(RECIPE, model, make_transform(RECIPE, model.processor), None)
    embed = jax.jit(objective.embed)
    whole = embed(model.params, batch, jax.random.key(0))
    changed = batch | {
        "pixels": np.where(np.arange(ROWS)[:, None, None, None] == 3, 0, batch["pixels"]).astype(np.uint8)
    }
    found = embed(model.params, changed, jax.random.key(0))
    for name in ("distillation", "masked", "distillation_mean", "masked_mean"):
        same = np.isclose(whole[name], found[name], rtol=1e-5).reshape(ROWS, -1).all(axis=1)
        assert same.tolist() == [row != 3 for row in range(ROWS)], name


@pytest.mark.slow
def test_losses_of_boxes_are_means_over_the_images_that_have_them(model, batch):
    """The cross-entropy in float64, of the decoder's states for the texts of one image after the other."""
    _, metrics, _ = gradients(model, batch)
    decoder, params = decoder_of(model.module, RECIPE.captioning), model.params["decoder"]
    pixels = normalize_pixels(jnp.asarray(batch["pixels"]), (0.5,) * 3, (0.5,) * 3)
    tower = {"params": {name: x for name, x in model.params.items() if name not in joint.GROUPS}}
    seen = model.module.apply(tower, pixels, method=lambda m, x: m.vision_model(x).last_hidden_state)
    for task, name in enumerate(("referring", "grounded")):
        losses = []
        for row in np.flatnonzero(batch["region_weights"].any(axis=(1, 2))):
            ids, weights = batch["region_ids"][row, task], batch["region_weights"][row, task].astype(np.float64)
            states = decoder.apply({"params": params}, jnp.asarray(ids[None]), seen[row : row + 1])[0]
            logits = np.float64(states) @ np.float64(params["token_embedding"]["embedding"]).T
            own = logits[np.arange(16), ids]
            losses.append(np.sum(weights * (np.log(np.exp(logits).sum(axis=1)) - own)))
        assert len(losses) == 4
        np.testing.assert_allclose(metrics[f"{name}_loss"], np.mean(losses), rtol=1e-5)


@pytest.mark.slow
def test_a_decoder_learns_to_find_a_square(model):
    """The text is the same for all images, "find square" and the box: only the image tells one box from another."""
    rng = np.random.default_rng(0)

    def squares(count):
        places = rng.integers(0, 2, (count, 2))  # one of four quarters
        pixels = rng.integers(0, 100, (count, 32, 32, 3), np.uint8)
        ids = np.ones((count, 2, 16), np.int32)
        for image, text, (x, y) in zip(pixels, ids, places, strict=True):
            image[16 * y : 16 * y + 16, 16 * x : 16 * x + 16] = 255
            text[:, :7] = [3, 4, 10 + x, 10 + y, 11 + x, 11 + y, 1]
        weights = np.zeros((count, 2, 16), np.float32)
        weights[:, 0, 2:7] = 0.2
        return {
            "pixels": jnp.asarray(pixels),
            "input_ids": jnp.asarray(ids[:, 0]),
            "region_ids": jnp.asarray(ids),
            "region_weights": jnp.asarray(weights),
        }

    recipe = dataclasses.replace(RECIPE, self_distillation=SelfDistillation())
    objective = make_objective(recipe, model, make_transform(recipe, model.processor), None)
    params = {name: x for name, x in model.params.items() if name not in joint.GROUPS or name == "decoder"}
    optimizer, data = optax.adam(1e-3), squares(512)

    def loss(params, batch):
        return jnp.mean(objective.embed(params, batch, jax.random.key(0))["referring"])

    @jax.jit
    def learn(params):
        def step(carry, i):
            params, state = carry
            batch = {name: jax.lax.dynamic_slice_in_dim(x, i % 16 * 32, 32) for name, x in data.items()}
            value, slopes = jax.value_and_grad(loss)(params, batch)
            updates, state = optimizer.update(slopes, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(200))

    with jax.numpy_dtype_promotion("standard"):  # optax's Adam
        (params, _), values = learn(params)
    entropy = 2 * np.log(2) / 5  # of two numbers from two that are unknown and three tokens that follow from them
    assert values[0] > entropy
    held_out = float(loss(params, squares(64)))
    assert held_out < 0.15 * entropy


def test_images_without_boxes_have_no_such_loss(model, batch):
    _, metrics, _ = gradients(model, batch | {"region_weights": np.zeros((ROWS, 2, 16), np.float32)})
    assert metrics["referring_loss"] == metrics["grounded_loss"] == 0


def test_the_teacher_follows_the_tower(model):
    objective = make_objective(RECIPE, model, make_transform(RECIPE, model.processor), None)
    frozen = {"teacher": model.params["teacher"]}
    trained = {name: x for name, x in model.params.items() if name != "teacher"}
    moved = jax.tree.map(lambda x: x + 1.0, trained)
    rng = np.random.default_rng(0)
    means = {f"teacher/{name}": jnp.float32(rng.normal(size=12)) for name in ("distillation", "masked")}
    found, metrics = objective.follow(frozen, moved, {"loss": jnp.float32(1), **means})
    assert set(metrics) == {"loss"}
    before, after = flatten(frozen["teacher"]), flatten(found["teacher"])
    assert before.keys() == after.keys()
    for path, x in after.items():
        if path.endswith("_center"):
            np.testing.assert_allclose(x, 0.1 * means[f"teacher/{path.removesuffix('_center')}"], rtol=1e-5)
        else:
            np.testing.assert_allclose(x, before[path] + 0.004, rtol=1e-4, atol=1e-6, err_msg=path)


def test_a_step_that_is_not_finite_leaves_what_follows():
    @dataclasses.dataclass(frozen=True)
    class Counting(Objective):
        def embed(self, params, batch, key):
            return batch["x"] * params["w"]

        def loss(self, params, embeds, batch):
            return jnp.mean(embeds), {}

        def follow(self, frozen, trained, metrics):
            return {"seen": frozen["seen"] + trained["w"]}, metrics

    optimizer = optax.sgd(1.0)
    params = {"w": jnp.float32(2.0), "seen": jnp.float32(0.0)}
    state = init_state(params, lambda path: path == "seen", optimizer, False)
    step = Step(Counting(nn.Dense(1), prepare=lambda key, pixels: pixels), optimizer)
    state, _ = step(state, {"x": jnp.ones(2)})
    assert (float(state.trained["w"]), float(state.frozen["seen"])) == (1.0, 1.0)
    state, _ = step(state, {"x": jnp.full(2, jnp.nan)})
    assert (float(state.trained["w"]), float(state.frozen["seen"]), int(state.skipped)) == (1.0, 1.0, 1)


def test_masked_patches_are_the_token_and_their_position():
    tower = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 3}
    vision = SiglipVisionModel(SiglipVisionConfig(image_size=24, patch_size=8, **tower))
    images = jax.random.normal(jax.random.key(0), (2, 24, 24, 3))
    params = vision.init(jax.random.key(1), images)["params"]
    token, mask = jnp.arange(12.0), np.zeros((2, 3, 3), bool)
    mask[0, 1, 2] = mask[1, 0, 0] = True

    def embeddings():
        return np.asarray(vision.apply({"params": params}, images, layer=0, method="get_patch_features"))

    plain = embeddings()
    with masked_patches(token, jnp.asarray(mask)):
        found = embeddings()
    np.testing.assert_array_equal(found[~mask], plain[~mask])
    positions = np.asarray(flatten(params)["vision_model/embeddings/position_embedding/embedding"]).reshape(3, 3, 12)
    np.testing.assert_allclose(found[mask], np.stack([token + positions[1, 2], token + positions[0, 0]]), rtol=1e-6)


def test_random_layers_cannot_be_frozen(model, tmp_path):
    recipe = dataclasses.replace(
        RECIPE, optimizer=dataclasses.replace(RECIPE.optimizer, rates=(("decoder/.*", 0.0), (".*", 1.0)))
    )
    with pytest.raises(ValueError, match="optimizer.rates must train decoder/.* which starts from random values"):
        prepare_model(recipe, write_checkpoint(tmp_path / "model", text_length=16))
    frozen = dataclasses.replace(
        RECIPE, optimizer=dataclasses.replace(RECIPE.optimizer, rates=(("vision_model/.*", 0.0), (".*", 1.0)))
    )
    with pytest.raises(ValueError, match="must train vision_model/.* with self_distillation"):
        prepare_model(frozen, tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captioning": {"weight": -1.0}}, "captioning.weight must be 0 or more, got -1.0"),
        (
            {"captioning": {"boxes": 1.0}},
            "captioning.boxes must be 0 without captioning.weight, got 1.0; set the weight",
        ),
        (
            {"captioning": {"weight": 1.0, "boxes": 1.0}, "augment": "flip"},
            "augment must be 'none' with captioning.box",
        ),
        ({"self_distillation": {"masked": 1.5}}, "self_distillation.masked must be from 0 to 1, got 1.5"),
        ({"self_distillation": {"views": 0}}, "self_distillation.views must be 1 or more, got 0"),
        ({"self_distillation": {"start": "soon"}}, "a duration must be like"),
        ({"late": {"patch_size": 0}}, "late.patch_size must be 1 or more, got 0"),
        ({"curation": {"keep": 2.0}}, "curation.keep must be from 0.01 to 1, got 2.0"),
        ({"captioning": {"weight": 1.0}, "task": "labels"}, "captioning must have the weight 0 unless task='pairs'"),
        ({"self_distillation": {"weight": 1.0}, "lora": {"rank": 4}}, "lora.rank must be 0 with self_distillation"),
        ({"curation": {"teacher": "t"}, "late": {"resolution": 64}}, "late must change nothing with curation.teacher"),
        ({"curation": {"teacher": "t"}, "task": "labels"}, "curation.teacher must be None unless task='pairs'"),
    ],
)
def test_impossible_recipes_are_refused(changes, message):
    from siglip_jax.training.setup import recipe_with

    with pytest.raises(ValueError, match=message):
        recipe_with(Recipe(), changes)
