"""Batches through a tower: padding, several steps within one program, and independence of the other rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax.inference.choices import CPU_STEP, choose
from siglip_jax.inference.encoder import Encoder, jitted
from siglip_jax.inference.weights import Weights
from siglip_jax.models import SiglipModel
from siglip_jax.parallel.mesh import make_mesh
from tests.support.tiny_checkpoint import picture


@pytest.fixture(scope="module")
def pixels(shared_siglip):
    return np.concatenate([shared_siglip.pixels(picture(i))[0][None] for i in range(21)])


@pytest.mark.slow
def test_run_drops_the_padding():
    stream = [(np.full((3, 2), 1, np.float32), np.arange(3)), (np.full((1, 2), 2, np.float32), np.arange(1))]
    encoder = Encoder(jax.jit(lambda params, x, y: x + y[:, None].astype(np.float32)), {}, 2, 4, "images")
    np.testing.assert_array_equal(encoder.run(stream, 4), [[1, 1], [2, 2], [3, 3], [2, 2]])
    assert encoder.run([], 4).shape == (0, 2)


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 4, 7, 20, 21])
def test_steps_within_a_batch_change_nothing(shared_siglip, pixels, most):
    whole = jitted(shared_siglip.model, "get_image_features", None)(shared_siglip.params, pixels)
    steps = jitted(shared_siglip.model, "get_image_features", most)(shared_siglip.params, pixels)
    np.testing.assert_allclose(steps, whole, atol=1e-6, rtol=0)


def test_a_large_batch_takes_several_steps(shared_siglip, pixels):
    jitted_steps = jitted(shared_siglip.model, "get_image_features", 4)
    text = jitted_steps.lower(shared_siglip.params, pixels).as_text()
    assert "stablehlo.while" in text and "tensor<4x32x32x3xf32>" in text


@pytest.mark.slow
def test_other_rows_change_nothing_at_the_highest_precision(shared_siglip, pixels):
    """A row is the same to the bit alone, at any position, with any other rows, and for any batch size."""
    with jax.default_matmul_precision("highest"):
        expected = shared_siglip.embed_pixels(pixels)
        for size in (1, 2, 8, 32):
            np.testing.assert_array_equal(shared_siglip.embed_pixels(pixels, batch_size=size), expected)
        for chosen in ([5], [20, 5], [5, 6, 5], list(range(20, -1, -1))):
            np.testing.assert_array_equal(shared_siglip.embed_pixels(pixels[chosen]), expected[chosen])
        texts = [f"thing {i}" for i in range(40)]
        expected = shared_siglip.encode_text(texts)
        np.testing.assert_array_equal(shared_siglip.encode_text(texts[33]), expected[33:34])
        np.testing.assert_array_equal(shared_siglip.encode_text(texts[::-1], batch_size=3), expected[::-1])


def test_other_rows_change_no_more_than_rounding_otherwise(shared_siglip, pixels):
    expected = shared_siglip.embed_pixels(pixels)
    for size in (1, 3, 32):
        np.testing.assert_allclose(shared_siglip.embed_pixels(pixels, batch_size=size), expected, atol=1e-6, rtol=0)


def test_arrays_on_the_device_are_taken_as_well(shared_siglip, pixels):
    np.testing.assert_array_equal(shared_siglip.embed_pixels(jnp.asarray(pixels)), shared_siglip.embed_pixels(pixels))
    ids = shared_siglip.tokens(["a cat", "two dogs", "a red car"])[0]
    np.testing.assert_array_equal(shared_siglip.embed_tokens(jnp.asarray(ids)), shared_siglip.embed_tokens(ids))


def test_towers_are_placed_when_they_are_needed(siglip):
    placed = siglip._weights._placed
    assert not placed
    siglip.encode_text("a cat")
    assert set(placed) == {"text_model", "logit_scale", "logit_bias"}
    assert set(siglip.params) == {"text_model", "vision_model", "logit_scale", "logit_bias"}
    assert siglip.params["vision_model"] is siglip.params["vision_model"]


def test_weights_are_placed_once():
    calls = []

    def place(part):
        calls.append(set(part))
        return {name: x + 1 for name, x in part.items()}

    weights = Weights({"a": 1, "b": 2}, place)
    assert weights.of("a") == {"a": 2} and weights.of("a") == {"a": 2} and weights.all() == {"a": 2, "b": 3}
    assert calls == [{"a"}, {"b"}] and Weights({"a": 1}).all() == {"a": 1}


def test_choices_follow_the_model(shared_siglip):
    choices = choose(shared_siglip.config, "float32")
    assert choices.device == "cpu" and choices == shared_siglip.choices
    assert choices.image_batch == choices.text_batch == 64
    vision = shared_siglip.config.vision_config
    work = vision.num_patches * vision.hidden_size
    assert choices.image_rows * work <= CPU_STEP < 2 * choices.image_rows * work
    base = choose(type(shared_siglip.config)(), "bfloat16")
    assert (base.image_batch, base.image_rows, base.text_batch, base.text_rows) == (8, 4, 32, 8)
    assert "bfloat16" in base.products
    assert SiglipModel(shared_siglip.config).attn_implementation == "auto" and "softmax in float32" in base.attention


def test_choices_are_those_of_each_shard_of_a_batch(shared_siglip):
    alone = shared_siglip.choices
    over = choose(shared_siglip.config, "float32", mesh=make_mesh(data=2, fsdp=2, tensor=2))
    numbers = ("image_batch", "text_batch", "image_rows", "text_rows")
    assert [getattr(over, name) for name in numbers] == [4 * getattr(alone, name) for name in numbers]
