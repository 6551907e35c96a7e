"""Rows of the same image are not each other's negatives."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from siglip_jax.training.objective import Pairs

IDS = np.array([7, -3, 7, 5, 7, 5], np.int32)  # three rows of one image, two of another
TOKENS = np.array([[1], [2], [3], [4], [5], [2]], np.int32)  # the last text equals that of the second row


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(0)
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 6, 8)))
    logits = 3.0 * images @ texts.T - 1.0
    params = {"logit_scale": jnp.log(jnp.array([3.0])), "logit_bias": jnp.array([-1.0])}
    return {"images": jnp.float32(images), "texts": jnp.float32(texts)}, params, logits


@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("equal_texts", [False, True])
def test_the_sigmoid_loss_matches_rows_of_the_same_image(given, block_size, equal_texts):
    embeds, params, logits = given
    objective = Pairs(nn.Dense(1), lambda key, x: x, equal_texts_match=equal_texts, block_size=block_size)
    loss, metrics = objective.loss(params, embeds, {"image_ids": IDS, "input_ids": jnp.asarray(TOKENS)})
    match = IDS[:, None] == IDS[None]
    if equal_texts:
        match |= (TOKENS[:, None] == TOKENS[None]).all(axis=2)
    expected = np.log1p(np.exp(np.where(match, -logits, logits))).sum() / 6
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert metrics["repeated_images"] == 3
    if not equal_texts:
        np.testing.assert_allclose(metrics["loss_positive"], np.log1p(np.exp(-np.diag(logits))).mean(), rtol=1e-6)
        np.testing.assert_allclose(metrics["loss_positive"] + metrics["loss_negative"], loss, rtol=1e-6)
    by_row, _ = objective.loss(
        params, embeds, {"image_ids": np.arange(6, dtype=np.int32), "input_ids": jnp.asarray(TOKENS)}
    )
    assert abs(by_row - loss) > 0.1


def test_the_softmax_loss_leaves_rows_of_the_same_image_out(given):
    embeds, params, logits = given
    objective = Pairs(nn.Dense(1), lambda key, x: x, contrast="softmax")
    loss, metrics = objective.loss(params, embeds, {"image_ids": IDS})
    kept = (IDS[:, None] != IDS[None]) | np.eye(6, dtype=bool)
    exponentials = np.exp(logits) * kept
    shares = [np.diag(exponentials) / exponentials.sum(axis=axis) for axis in (0, 1)]
    np.testing.assert_allclose(loss, -np.log(shares).mean(), rtol=1e-6)
    assert metrics["repeated_images"] == 3
