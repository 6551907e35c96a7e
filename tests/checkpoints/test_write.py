"""A checkpoint does not take the place of a larger one by mistake."""

import json

import numpy as np
import pytest

import siglip_jax
from siglip_jax import SiglipModel, SiglipVisionModel
from siglip_jax.params import flatten
from tests.support.scaled_variants import random_checkpoint
from tests.support.tiny_checkpoint import tiny_config


@pytest.fixture
def made():
    return random_checkpoint(tiny_config(vocab_size=60), np.dtype(np.float32))


@pytest.mark.parametrize("format", ["huggingface", "open_clip", "orbax"])
def test_a_tower_does_not_replace_the_model_that_it_was_taken_from(tmp_path, made, format):
    siglip_jax.write_checkpoint(tmp_path / "model", made, format)
    before = {file: file.read_bytes() for file in (tmp_path / "model").rglob("*") if file.is_file()}
    tower, params = SiglipVisionModel.from_pretrained(tmp_path / "model")
    words = (
        "model: the destination must not hold more than a SiglipVisionModel, got a SiglipModel, whose logit_scale,"
        " text_model would be lost; choose another destination, or pass overwrite=True"
    )
    with pytest.raises(FileExistsError, match=words):
        tower.save_pretrained(tmp_path / "model", params)
    assert {file: file.read_bytes() for file in (tmp_path / "model").rglob("*") if file.is_file()} == before
    if format == "huggingface":
        tower.save_pretrained(tmp_path / "model", params, overwrite=True)
        assert siglip_jax.read_checkpoint(tmp_path / "model").architecture == "SiglipVisionModel"
        tower.save_pretrained(tmp_path / "model", params)  # the same parts again


def test_a_tower_in_an_npz_file_does_not_replace_the_model(tmp_path, made):
    path = tmp_path / "model.npz"
    siglip_jax.write_checkpoint(path, made, "big_vision")
    tower = siglip_jax.read_checkpoint(path, architecture="SiglipTextModel")
    with pytest.raises(FileExistsError, match="got a SiglipModel, whose logit_scale, vision_model would be lost"):
        siglip_jax.write_checkpoint(path, tower, "big_vision")
    siglip_jax.write_checkpoint(path, tower, "big_vision", overwrite=True)
    assert siglip_jax.read_checkpoint(path).architecture == "SiglipTextModel"


def test_a_model_replaces_another_one_a_tower_and_what_is_damaged(tmp_path, made):
    tower = siglip_jax.Checkpoint(
        made.config.text_config, {"text_model": made.params["text_model"]}, "huggingface", "SiglipTextModel"
    )
    siglip_jax.write_checkpoint(tmp_path, tower)
    siglip_jax.write_checkpoint(tmp_path, made, "huggingface")
    siglip_jax.write_checkpoint(tmp_path, made, "huggingface")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    siglip_jax.write_checkpoint(tmp_path, tower)
    assert siglip_jax.read_checkpoint(tmp_path).architecture == "SiglipTextModel"


def test_swapped_arguments_are_told(tmp_path, made):
    model = SiglipModel(made.config)
    save = getattr(model.save_pretrained, "__wrapped__", None) or type(model).save_pretrained
    with pytest.raises(ValueError, match=r"got a dict and a str; call save_pretrained\(directory, params\)$"):
        call(save, model, made.params, str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def call(function, *arguments):
    """Calls a function without the checks of its annotations, which only the tests have."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function(*arguments)


def test_parameters_are_written_where_nothing_was(tmp_path, made):
    SiglipModel(made.config).save_pretrained(tmp_path / "new" / "deep", made.params)
    again = flatten(siglip_jax.read_checkpoint(tmp_path / "new" / "deep").params)
    assert all(np.array_equal(again[path], x) for path, x in flatten(made.params).items())
