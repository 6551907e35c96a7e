"""Names of tensors that other programs put something before are read as SigLIP's own, and it is said."""

import json

import numpy as np
import pytest
import safetensors.numpy

import siglip_jax
from siglip_jax.checkpoints import convert, describe
from siglip_jax.checkpoints.formats import _timm_tower
from siglip_jax.params import flatten
from tests.support.scaled_variants import random_checkpoint
from tests.support.tiny_checkpoint import tiny_config

PREFIXES = ["_orig_mod.", "module.", "model.", "siglip.", "backbone.", "base_model.model.", "_orig_mod.module.model."]


@pytest.fixture(scope="module")
def whole():
    return random_checkpoint(tiny_config(60), np.dtype(np.float32))


def bits(params):
    return {path: np.asarray(x).tobytes() for path, x in flatten(params).items()}


def rename(file, new):
    tensors = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file({new(name): x for name, x in tensors.items()}, file)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_a_whole_model_is_left_out_and_said(prefix, whole, tmp_path):
    siglip_jax.write_checkpoint(tmp_path / "in", whole, "huggingface")
    rename(tmp_path / "in" / "model.safetensors", lambda name: prefix + name)
    assert bits(siglip_jax.read_checkpoint(tmp_path / "in").params) == bits(whole.params)
    left_out = [prefix] if prefix.count(".") < 2 or "_orig_mod" not in prefix else ["_orig_mod.", "module.model."]
    if prefix == "base_model.model.":
        left_out = [prefix]
    said = describe(tmp_path / "in")["notes"]
    assert len(said) == len(left_out)
    assert all(f"{part} left out" in note for part, note in zip(left_out, said, strict=True))
    done = convert(tmp_path / "in", tmp_path / "out", "huggingface")
    assert (done.different, list(done.changes)) == ((), said)
    assert describe(tmp_path / "out")["notes"] == []


@pytest.mark.parametrize("prefix", ["module.", "model.vision_tower."])
@pytest.mark.parametrize("own", ["", "vision_model."])
def test_a_prefix_of_a_single_tower_is_left_out(prefix, own, whole, tmp_path):
    config = whole.config.vision_config
    tower = siglip_jax.Checkpoint(
        config, {"vision_model": whole.params["vision_model"]}, "huggingface", "SiglipVisionModel"
    )
    siglip_jax.write_checkpoint(tmp_path, tower)
    rename(tmp_path / "model.safetensors", lambda name: prefix + own + name.removeprefix("vision_model."))
    assert bits(siglip_jax.read_checkpoint(tmp_path).params) == bits(tower.params)


def test_a_prefix_is_left_out_with_a_configuration_of_the_caller(whole, tmp_path):
    siglip_jax.write_checkpoint(tmp_path, whole, "huggingface")
    (tmp_path / "config.json").unlink()
    file = tmp_path / "model.safetensors"
    rename(file, lambda name: f"module.{name}")
    _, params = siglip_jax.SiglipModel.from_pretrained(file, config=whole.config)
    assert bits(params) == bits(whole.params)
    _, params = siglip_jax.SiglipVisionModel.from_pretrained(file, config=whole.config.vision_config)
    assert bits(params) == bits({"vision_model": whole.params["vision_model"]})


def test_wrappers_within_names_are_left_out(whole, tmp_path):
    siglip_jax.write_checkpoint(tmp_path, whole, "huggingface")
    rename(
        tmp_path / "model.safetensors",
        lambda name: name.replace("vision_model.", "vision_model._orig_mod.").replace(
            "layers.1.", "layers.1._checkpoint_wrapped_module."
        ),
    )
    assert bits(siglip_jax.read_checkpoint(tmp_path).params) == bits(whole.params)
    assert describe(tmp_path)["notes"] == ["names of wrappers left out of the names of tensors"]


def test_names_that_share_no_prefix_stay_an_error(whole, tmp_path):
    siglip_jax.write_checkpoint(tmp_path, whole, "huggingface")
    rename(tmp_path / "model.safetensors", lambda name: name if name.startswith("logit") else f"model.{name}")
    with pytest.raises(ValueError, match="unexpected"):
        siglip_jax.read_checkpoint(tmp_path)


@pytest.fixture
def tiny_timm(monkeypatch):
    monkeypatch.setattr(_timm_tower, "SIZES", {"base": (32, 2, 64, 4)})


@pytest.mark.parametrize("config", [None, {"model_type": "siglip", "open_clip_model_name": "hf-hub:x/y"}])
def test_a_model_of_open_clip_in_a_wrapper_for_transformers_is_read(config, whole, tmp_path, tiny_timm):
    """Such as Marqo's: `model.visual.trunk.…` in model.safetensors, beside open_clip_config.json."""
    siglip_jax.write_checkpoint(tmp_path, whole, "open_clip")
    (tmp_path / "config.json").unlink()
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "open_clip_model.safetensors").rename(tmp_path / "model.safetensors")
    rename(tmp_path / "model.safetensors", lambda name: f"model.{name}")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        read = siglip_jax.read_checkpoint(path)
        assert (read.format, bits(read.params)) == ("open_clip", bits(whole.params))
    assert describe(tmp_path)["notes"] == ["prefix model. left out of the names of tensors"]


def test_a_prefix_in_a_directory_of_timm_is_left_out(whole, tmp_path, tiny_timm):
    params = {"vision_model": whole.params["vision_model"]}
    tower = siglip_jax.Checkpoint(whole.config.vision_config, params, "timm", "SiglipVisionModel")
    siglip_jax.write_checkpoint(tmp_path, tower)
    rename(tmp_path / "model.safetensors", lambda name: f"module._orig_mod.{name}")
    assert bits(siglip_jax.read_checkpoint(tmp_path).params) == bits(params)
