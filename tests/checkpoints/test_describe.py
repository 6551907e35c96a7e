"""What is no SigLIP checkpoint is not described as one."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

import siglip_jax
from siglip_jax.checkpoints import describe
from siglip_jax.configs import config_from_dict
from tests.support.scaled_variants import random_checkpoint
from tests.support.tiny_checkpoint import tiny_config

TIMM = {
    "architecture": "vit_base_patch16_siglip_224",
    "num_classes": 0,
    "pretrained_cfg": {"input_size": [3, 224, 224], "mean": [0.5, 0.5, 0.5]},
}


@pytest.fixture
def directory(tmp_path):
    made = random_checkpoint(tiny_config(vocab_size=60), np.dtype(np.float32))
    siglip_jax.write_checkpoint(tmp_path / "model", made, "huggingface")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (TIMM, "a configuration of timm's 'vit_base_patch16_siglip_224'"),
        ({}, "neither"),
        ({"hidden_size": 32, "model_type": None}, "neither"),
        ({"text_config": {}}, "neither"),
    ],
)
def test_a_configuration_that_names_no_model_is_not_believed(directory, config, found):
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as caught:
        describe(directory)
    assert str(caught.value) == (
        f"{directory / 'config.json'}: the configuration must have a model_type, or a text_config and a vision_config,"
        f" got {found}; use the config.json of a SigLIP checkpoint"
    )
    with pytest.raises(ValueError, match="must have a model_type, or a text_config and a vision_config"):
        siglip_jax.SiglipConfig.from_pretrained(directory)
    with pytest.raises(ValueError, match="must have a model_type, or a text_config and a vision_config"):
        config_from_dict({key: value for key, value in config.items() if value is not None})


def test_one_tower_of_a_file(directory, tmp_path):
    siglip_jax.write_checkpoint(tmp_path / "x.npz", siglip_jax.read_checkpoint(directory), "big_vision")
    facts = describe(f"{tmp_path / 'x.npz'}:img")
    assert (facts["architecture"], facts["text"], facts["weight_files"]) == ("SiglipVisionModel", None, ["x.npz"])
    assert facts["parameters"]["total"] == describe(directory)["parameters"]["vision_model"]
    with pytest.raises(ValueError, match="the subtree must be :img or :txt and in the file, got :mlp"):
        describe(f"{tmp_path / 'x.npz'}:mlp")
    with pytest.raises(FileNotFoundError, match=r"y\.npz: no such file"):
        describe(f"{tmp_path / 'y.npz'}:img")


def test_a_configuration_of_both_towers_needs_no_model_type(directory):
    file = directory / "config.json"
    d = {key: value for key, value in json.loads(file.read_text()).items() if key != "model_type"}
    file.write_text(json.dumps(d))
    facts = describe(directory)
    assert (facts["architecture"], facts["vision"]["width"], facts["text"]["vocabulary"]) == ("SiglipModel", 32, 60)
    assert siglip_jax.SiglipVisionConfig.from_pretrained(directory).image_size == 32
    file.write_text(json.dumps(d | {"model_type": None}))
    assert describe(directory) == facts


def test_weights_of_another_model_are_not_described_as_the_configuration(directory):
    foreign = {"blocks.0.attn.qkv.weight": np.zeros((3, 4), np.float32)}
    safetensors.numpy.save_file(foreign, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"got \d+ missing \(.*\), 1 unexpected \(blocks\.0\.attn\.qkv\.weight\)"):
        describe(directory)


def test_a_wrong_shape_is_found_by_describe_as_by_verify(directory):
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    name = "text_model.head.weight"
    safetensors.numpy.save_file(tensors | {name: tensors[name][:, :5].copy()}, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"text_model.head.weight must be \(32, 32\), got \(32, 5\)"):
        describe(directory)


@pytest.mark.parametrize("format", ["open_clip", "orbax", "big_vision"])
def test_every_format_is_described_after_its_names_are_compared(directory, tmp_path, format):
    out = tmp_path / ("out.npz" if format == "big_vision" else "out")
    siglip_jax.write_checkpoint(out, siglip_jax.read_checkpoint(directory), format)
    assert describe(out)["parameters"] == describe(directory)["parameters"]
    if format == "big_vision":
        return
    other = tiny_config(vocab_size=61).to_dict()
    if format == "orbax":
        other["orbax_params"] = json.loads((out / "config.json").read_text())["orbax_params"]
    (out / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"1 of the wrong shape \(.*must be \(61, 32\), got \(60, 32\)\)"):
        describe(out)


def test_a_config_of_timm_beside_weights_of_open_clip_is_passed_over(directory, tmp_path, monkeypatch):
    from siglip_jax.checkpoints.formats import _timm_tower

    monkeypatch.setattr(_timm_tower, "SIZES", {"base": (32, 2, 64, 4)})
    out = tmp_path / "out"
    siglip_jax.write_checkpoint(out, siglip_jax.read_checkpoint(directory), "open_clip")
    (out / "config.json").write_text(json.dumps(TIMM))
    assert describe(out)["vision"]["image_size"] == 32
    shutil.rmtree(out)
