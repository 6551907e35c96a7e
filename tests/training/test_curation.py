"""Active curation: scores are the model's losses less the teacher's, and each device trains on its best rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from siglip_jax import make_mesh, sigmoid_loss
from siglip_jax.losses.pair_losses import pair_losses
from siglip_jax.parallel import global_batch
from siglip_jax.training import Pairs, Recipe, train
from siglip_jax.training.curation import Curator
from tests.support.pairs import write_pairs
from tests.support.tiny_checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(2, 24, 10))
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    logits = 5.0 * images @ texts.T - 2.0
    losses = np.logaddexp(0, np.where(np.eye(24, dtype=bool), -logits, logits))
    given = jnp.float32(images), jnp.float32(texts), jnp.log(jnp.float32([5.0])), jnp.float32([-2.0])
    return given, 0.5 * (losses.sum(axis=0) + losses.sum(axis=1))


@pytest.mark.parametrize("block_size", [1024, 24, 7])
@pytest.mark.parametrize("devices", [1, 8])
def test_losses_of_pairs_are_those_of_rows_and_columns(pairs, block_size, devices):
    given, expected = pairs
    mesh = None if devices == 1 else make_mesh(data=devices)
    found = jax.jit(lambda *x: pair_losses(*x, block_size=block_size, mesh=mesh))(*given)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(found.mean(), sigmoid_loss(*given), rtol=3e-6)


class Linear(Pairs):
    """Embeds with one matrix for images and one for texts."""

    def embed(self, params, batch, key):
        both = {"images": batch["x"] @ params["a"], "texts": batch["y"] @ params["b"]}
        return {name: x / jnp.linalg.norm(x, axis=1, keepdims=True) for name, x in both.items()}


@pytest.mark.parametrize(("devices", "pieces"), [(1, 1), (1, 3), (8, 1)])
def test_the_best_half_of_each_device_is_trained_on(devices, pieces):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 48, 6)).astype(np.float32)
    scalars = {"logit_scale": jnp.float32([1.5]), "logit_bias": jnp.float32([-1.0])}
    sides = [{name: rng.normal(size=(6, 4)).astype(np.float32) for name in "ab"} | scalars for _ in range(2)]
    mesh = None if devices == 1 else make_mesh(data=devices)
    batch = {"x": x, "y": y, "row": np.arange(48, dtype=np.int32)}
    linear = Linear(nn.Dense(1), prepare=lambda key, pixels: pixels)
    curator = Curator(linear, linear, 0.5, pieces, mesh)
    given = batch if mesh is None else global_batch(batch, mesh)
    chosen, metrics = jax.jit(lambda *x: curator(*x))(sides[0] | {"curator": sides[1]}, given, jax.random.key(0))

    def losses(params):
        a, b = x @ params["a"], y @ params["b"]
        a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a, b))
        z = np.exp(1.5) * a.astype(np.float64) @ b.T.astype(np.float64) - 1.0
        z = np.logaddexp(0, np.where(np.eye(48, dtype=bool), -z, z))
        return 0.5 * (z.sum(axis=0) + z.sum(axis=1))

    scores = (losses(sides[0]) - losses(sides[1])).reshape(devices, -1)
    best = (
        np.sort(np.argsort(-scores, axis=1)[:, : 24 // devices], axis=1) + np.arange(devices)[:, None] * 48 // devices
    )
    np.testing.assert_array_equal(chosen["row"], best.ravel())
    np.testing.assert_array_equal(chosen["x"], x[best.ravel()])
    np.testing.assert_allclose(metrics["score"], scores.mean(), rtol=1e-4, atol=1e-5)
    assert metrics["score_trained"] > metrics["score"]


@pytest.mark.slow
def test_a_run_trains_on_what_the_teacher_chooses(tmp_path):
    model = write_checkpoint(tmp_path / "model", text_length=16)
    teacher = write_checkpoint(tmp_path / "teacher", text_length=16, seed=1)
    data = write_pairs(tmp_path / "pairs", 1)
    fields = {"batch_size": 8, "duration": "4 steps", "curation": {"teacher": str(teacher), "keep": 0.5}}
    whole = train(data, model, tmp_path / "whole", Recipe(), log_every=1, save_every=2, **fields)
    assert [line["score_trained"] > line["score"] for line in whole.metrics] == [True] * 4
    assert sorted(whole.params) == ["logit_bias", "logit_scale", "text_model", "vision_model"]


def test_a_teacher_must_read_images_and_texts_as_the_model_does(tmp_path):
    model = write_checkpoint(tmp_path / "model", text_length=16)
    teacher = write_checkpoint(tmp_path / "teacher", text_length=8)
    data = write_pairs(tmp_path / "pairs", 1)
    fields = {"batch_size": 8, "duration": "4 steps", "curation": {"teacher": str(teacher), "keep": 0.5}}
    with pytest.raises(ValueError, match="curation.teacher must prepare images and texts as the model does"):
        train(data, model, tmp_path / "out", Recipe(), **fields)
    with pytest.raises(ValueError, match=r"batch_size / curation.keep must be a multiple of .* got 8 / 0.3"):
        train(data, model, tmp_path / "out", Recipe(), **fields | {"curation": {"teacher": str(teacher), "keep": 0.3}})
