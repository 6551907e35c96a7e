"""What `load` checks before it computes: its arguments, the files, the vocabulary against the table of the model."""

import dataclasses
import inspect
import json
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import siglip_jax
from siglip_jax import SiglipModel, load
from siglip_jax.assets import BUNDLED_MODEL
from siglip_jax.checkpoints import verify
from siglip_jax.data import Example, Transform
from siglip_jax.inference import Siglip
from siglip_jax.training import RECIPES, Recipe
from siglip_jax.training.prepare import make_transform
from tests.support.images import encoded, noise


def first_pieces(model: bytes, count: int) -> bytes:
    """Returns the first pieces of a SentencePiece model, as a download that was cut off between two of them holds."""
    end = 0
    for _ in range(count):
        assert (model[end], model[end + 1] < 128) == (0x0A, True)  # field 1, whose length is one byte
        end += 2 + model[end + 1]
    return model[:end]


@pytest.fixture
def bundled(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED_MODEL, tmp_path / "model"))


def test_a_vocabulary_cut_off_between_two_pieces(bundled):
    file = bundled / "spiece.model"
    file.write_bytes(first_pieces(file.read_bytes(), 6))
    message = "^[^\n]*spiece.model: vocabulary must have about as many pieces as the model's table has rows, 2048, got"
    with pytest.raises(ValueError, match=message):
        siglip_jax.load(bundled)
    failed = {check.name for check in verify(bundled) if not check.right}
    assert "ids of the tokenizer" in failed


@pytest.mark.parametrize("name", ["eos_token", "pad_token", "cls_token"])
def test_a_special_token_outside_the_table(bundled, name):
    file = bundled / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {name: "<new>"}))
    with pytest.raises(ValueError, match="ids must be below the 2048 rows of the model's table, got 2048 of '<new>'"):
        siglip_jax.load(bundled)


def test_the_bundled_vocabulary_fits(bundled):
    assert siglip_jax.load(bundled).processor.tokenizer.largest_id == 2047
    assert [check.right for check in verify(bundled) if check.name == "ids of the tokenizer"] == [True]


def test_the_pixel_limit_is_an_option_of_inference_and_of_training(checkpoint):
    image = encoded(noise(40, 50), "PNG")
    siglip = siglip_jax.load(checkpoint, max_pixels=1999)
    with pytest.raises(ValueError, match=r"^bytes: image must have at most 1999 pixels, got 2000; raise max_pixels"):
        siglip.encode_image(image)
    with pytest.raises(ValueError, match="image must have at most 1999 pixels, got 2000"):
        siglip.pixels(image)
    recipe = dataclasses.replace(RECIPES["finetune"], max_pixels=1999)
    with pytest.raises(ValueError, match=r"^a\.png: image must have at most 1999 pixels, got 2000"):
        make_transform(recipe, siglip.processor)(Example(image, ("a",), None, "a.png"), np.random.default_rng(0))
    with pytest.raises(ValueError, match="max_pixels must be at least 1, got 0"):
        dataclasses.replace(recipe, max_pixels=0)
    every = [siglip_jax.load, siglip_jax.load_image, siglip_jax.search.embed, Siglip, Transform, Recipe]
    assert {inspect.signature(function).parameters["max_pixels"].default for function in every} == {89_478_485}


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        ("int8", "quantize with siglip_jax.load(..., quantization='int8')"),
        ("nf4", "quantize with siglip_jax.load(..., quantization='nf4')"),
        ("auto", "leave it out for the default"),
        ("bf16", "use 'bfloat16'"),
        ("fp16", "use 'float16'"),
        (np.int32, "leave it out for the default"),
    ],
)
def test_a_dtype_that_is_no_float_is_refused_before_anything_is_read(dtype, advice):
    words = f"dtype must be one of float32, bfloat16, float16, got {dtype!r}; {advice}"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        load("nowhere/at/all", dtype=dtype)
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        SiglipModel.from_pretrained("nowhere/at/all", dtype=dtype)
    with pytest.raises(ValueError, match=f"^param_{re.escape(words)}$"):
        SiglipModel.from_pretrained("nowhere/at/all", param_dtype=dtype)


@pytest.mark.parametrize("dtype", [["float32"], {"a": 1}, "", "<f3"])
def test_what_is_no_dtype_at_all_is_refused_too(dtype):
    with pytest.raises(ValueError, match="^dtype must be one of float32, bfloat16, float16, got .*; leave it out for"):
        load("nowhere/at/all", dtype=dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16, np.dtype(jnp.bfloat16), np.float16, "float32"])
def test_a_float_is_accepted_in_every_spelling(checkpoint, dtype):
    assert load(checkpoint, dtype=dtype).model.dtype == jnp.dtype(dtype)


@pytest.mark.parametrize(("tower", "name"), [("Vision", "SiglipVisionModel"), ("Text", "SiglipTextModel")])
def test_a_directory_of_one_tower_names_what_it_lacks(checkpoint, tmp_path, tower, name):
    model, params = getattr(siglip_jax, name).from_pretrained(checkpoint)
    model.save_pretrained(tmp_path, params)
    part = {"Vision": "image processor, preprocessor_config.json,", "Text": "tokenizer"}[tower]
    with pytest.raises(
        FileNotFoundError, match=f"^{re.escape(str(tmp_path))}: load needs the {part} beside the weights"
    ):
        load(tmp_path)
    assert getattr(siglip_jax, name).from_pretrained(tmp_path)[0].config.replace(extra={}) == model.config


def test_a_model_without_its_processor_says_to_save_that_too(checkpoint, tmp_path):
    model, params = SiglipModel.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path, params)
    words = "load needs the tokenizer and the image processor beside the weights, got neither; save them there with"
    with pytest.raises(
        FileNotFoundError, match=f"^{re.escape(f'{tmp_path}: {words}')} SiglipProcessor.save_pretrained"
    ):
        load(tmp_path)
    siglip_jax.SiglipProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path)
    assert load(tmp_path).encode_text("a cat").shape == (1, 32)
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_an_assigned_special_token_changes_the_next_scores(siglip):
    image, labels = np.zeros((32, 32, 3), np.uint8), ["a cat", "two dogs"]
    before = siglip.similarity(image, labels)
    siglip.processor.tokenizer.pad_token = "<unk>"
    after = siglip.similarity(image, labels)
    expected = siglip.encode_image(image) @ siglip.encode_text(labels).T
    np.testing.assert_allclose(after, 1 / (1 + np.exp(-expected * siglip.temperature - siglip.logit_bias)), rtol=1e-5)
    assert np.abs(after - before).max() > 1e-4
