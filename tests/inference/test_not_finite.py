"""Embeddings that are not finite are an error that says which input, wherever a model is used."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from siglip_jax.cli import main
from siglip_jax.inference import Batcher, Siglip, pipeline
from siglip_jax.search import embed
from tests.support.images import noise

BLACK, WHITE, OTHER = (np.full((40, 50, 3), 0, np.uint8), np.full((40, 50, 3), 255, np.uint8), noise(40, 50))
MIXED = [OTHER, WHITE, BLACK, WHITE]
SAID = "the embedding must be finite, got NaN or infinity; check the weights, or use a dtype of a larger range"


@pytest.fixture
def fails_for_white(siglip: Siglip) -> Siglip:
    """A model whose embedding of a white image overflows, as a large activation does in float16."""
    encode = siglip._encode_pixels

    def overflowing(params, pixels):
        white = pixels.mean(axis=(1, 2, 3), keepdims=False) > 0.99
        return jnp.where(white[:, None], jnp.inf, encode(params, pixels))

    siglip.__dict__["_encode_pixels"] = overflowing
    return siglip


@pytest.fixture
def diverged(siglip: Siglip) -> Siglip:
    return siglip.with_params(jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), siglip.params))


def test_the_error_says_which_image(fails_for_white):
    for ask in (
        fails_for_white.encode_image,
        lambda images: fails_for_white.similarity(images, ["a cat"]),
        lambda images: fails_for_white.classify(images, ["a cat"]),
        lambda images: pipeline(model=fails_for_white)(images, candidate_labels=["a cat"]),
        lambda images: fails_for_white.encode_image(images, batch_size=1),
        lambda images: fails_for_white.embed_pixels(np.stack([fails_for_white.pixels(i)[0] for i in images])),
    ):
        with pytest.raises(ValueError, match=rf"^images\[1\]: {SAID}[^\n]*$"):
            ask(MIXED)
    assert np.isfinite(fails_for_white.encode_image([OTHER, BLACK])).all()


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_caller_that_asks_for_rows_of_nan_gets_them(fails_for_white, batch_size):
    told: dict[int, str] = {}
    images = ["nowhere.png", *MIXED, "nowhere.png"]
    found = fails_for_white.encode_image(
        images, batch_size=batch_size, on_unreadable=lambda i, error: told.update({i: str(error)})
    )
    assert np.isnan(found).all(axis=1).tolist() == [True, False, True, False, True, True]
    np.testing.assert_allclose(found[[1, 3]], fails_for_white.encode_image([OTHER, BLACK]), atol=5e-7)
    assert sorted(told) == [0, 2, 4, 5]
    assert told[2].startswith(f"images[2]: {SAID}") and told[0].startswith("nowhere.png: no such image file")


def test_the_error_says_which_text(diverged):
    for ask in (
        diverged.encode_text,
        lambda texts: diverged.similarity(OTHER, texts),
        lambda texts: diverged.classify(OTHER, texts),
    ):
        with pytest.raises(ValueError, match=rf"^texts\[0\], 'a cat': {SAID}"):
            ask(["a cat", "a dog"])
    with pytest.raises(ValueError, match=rf"^texts\[0\]: {SAID}"):
        diverged.embed_tokens(*diverged.tokens(["a cat"]))


def test_a_call_of_the_batcher_fails_alone(fails_for_white):
    with Batcher(fails_for_white, max_delay=0.2) as batcher:
        good, bad = batcher.submit_image([OTHER, BLACK]), batcher.submit_image([OTHER, WHITE])
        assert np.isfinite(good.result(60.0)).all()
        with pytest.raises(ValueError, match=rf"^images\[1\]: {SAID}"):
            bad.result(60.0)


def test_a_temperature_that_is_not_finite_is_an_error(siglip):
    params = siglip.params | {"logit_scale": np.full_like(siglip.params["logit_scale"], 100.0)}
    message = r"^exp\(logit_scale\) must be finite in float32, got 2\.68812e\+43; check the weights$"
    with pytest.raises(ValueError, match=message):
        siglip.with_params(params).classify(OTHER, ["a cat"])
    params = siglip.params | {"logit_bias": np.full_like(siglip.params["logit_bias"], np.nan)}
    with pytest.raises(ValueError, match="^logit_bias must be finite in float32, got nan; check the weights$"):
        siglip.with_params(params).similarity(OTHER, ["a cat"])


def test_embed_says_which_file(fails_for_white, tmp_path):
    (tmp_path / "images").mkdir()
    for name, image in (("a", OTHER), ("b", WHITE)):
        PIL.Image.fromarray(image).save(tmp_path / "images" / f"{name}.png")
    with pytest.raises(ValueError, match=rf"b\.png: {SAID}"):
        embed(tmp_path / "images", tmp_path / "out", fails_for_white)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_classify_of_the_command_line_says_so_and_exits_with_2(diverged, tmp_path, capsys, form):
    diverged.save_pretrained(tmp_path / "model")
    PIL.Image.fromarray(OTHER).save(tmp_path / "a.png")
    arguments = ["classify", str(tmp_path / "a.png"), "--labels", "a cat", "a dog", "--model", str(tmp_path / "model")]
    assert main([*arguments, *form]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"texts[0], 'a cat': {SAID}" in err and err.count("\n") == 1


def test_classify_of_the_command_line_names_the_image(fails_for_white, tmp_path, capsys, monkeypatch):
    module = sys.modules["siglip_jax.inference.load"]  # `siglip_jax.inference.load` is the function of that name
    monkeypatch.setattr(module, "load", lambda *_, **__: fails_for_white)
    for name, image in (("a", OTHER), ("b", WHITE)):
        PIL.Image.fromarray(image).save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert main(["classify", *paths, "--labels", "a cat", "--json"]) == 2
    out, err = capsys.readouterr()
    assert [result["image"] for result in json.loads(out)] == paths[:1]
    assert f"{paths[1]}: images[1]: {SAID}" in err
