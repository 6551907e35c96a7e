"""The additions of a run with LoRA are an adapter of PEFT: its names, its factors, and the model it stands for."""

import dataclasses
import json
import types

import numpy as np
import pytest
import safetensors.numpy

import siglip_jax
from siglip_jax.params import flatten, unflatten
from siglip_jax.training import RECIPES, train
from siglip_jax.training import run as run_module
from siglip_jax.training.adapter import save_adapter
from siglip_jax.training.prepare import prepare_model
from siglip_jax.training.recipe import Lora
from siglip_jax.training.saving import whole
from tests.support import peft_files
from tests.support.pairs import write_pairs

RANK, ALPHA = 3, 7.5
PREFIX = "base_model.model."
ATTENTION = "vision_model.head.attention"


@pytest.fixture(scope="module")
def recipe():
    return dataclasses.replace(RECIPES["lora"], lora=Lora(RANK, ALPHA))


def moved_additions(params):
    random = np.random.RandomState(0)
    flat = {p: random.standard_normal(x.shape) if p.endswith("/b") else x for p, x in flatten(params).items()}
    return unflatten({path: np.array(x, np.float32) for path, x in flat.items()})


def moved(params):
    """Parameters as after training: the additions, the temperature, the probe and a bias are not those of the start."""
    flat = flatten(moved_additions(params))
    flat["logit_scale"] = np.float32([1.25])
    flat["vision_model/head/probe"] = flat["vision_model/head/probe"] + np.float32(1)
    flat["text_model/encoder/layers_1/mlp/fc1/bias"] += np.float32(2)
    flat["text_model/final_layer_norm/scale"] += np.float32(3)
    return unflatten(flat)


@pytest.fixture(scope="module")
def saved(checkpoint, recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "adapter"
    model = prepare_model(recipe, checkpoint)
    params = moved(model.params)
    save_adapter(out, recipe, model, checkpoint, params)
    return out, whole(recipe, params)


def test_an_adapter_stands_for_the_trained_model(saved):
    out, expected = saved
    found = siglip_jax.read_checkpoint(out)
    assert found.architecture == "SiglipModel"
    found, expected = flatten(found.params), flatten(expected)
    assert set(found) == set(expected)
    for path, x in expected.items():
        np.testing.assert_allclose(found[path], x, rtol=0, atol=1e-6 * np.abs(x).max(), err_msg=path)


def test_the_files_are_laid_out_as_peft_reads_them(saved, checkpoint):
    out, expected = saved
    config = json.loads((out / "adapter_config.json").read_text())
    tensors = safetensors.numpy.load_file(out / "adapter_model.safetensors")
    base = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", RANK, ALPHA)
    assert config["base_model_name_or_path"] == str(checkpoint.resolve())
    assert config["auto_mapping"]["base_model_class"] == "SiglipModel"
    linear = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"]
    layers = [f"{t}_model.encoder.layers.{i}.{name}" for t in ("text", "vision") for i in (0, 1) for name in linear]
    layers += ["vision_model.head.mlp.fc1", "vision_model.head.mlp.fc2"]
    assert sorted(config["target_modules"]) == sorted(layers)
    assert sorted(config["modules_to_save"]) == ["text_model.final_layer_norm", ATTENTION]
    whole_modules = [f"{ATTENTION}.in_proj_weight", f"{ATTENTION}.in_proj_bias"]
    whole_modules += [f"{ATTENTION}.out_proj.weight", f"{ATTENTION}.out_proj.bias"]
    whole_modules += [f"text_model.final_layer_norm.{leaf}" for leaf in ("weight", "bias")]
    others = ["logit_scale", "vision_model.head.probe", "text_model.encoder.layers.1.mlp.fc1.base_layer.bias"]
    factors = [f"{layer}.{kind}.weight" for layer in layers for kind in ("lora_A", "lora_B")]
    assert set(tensors) == {PREFIX + name for name in (*factors, *whole_modules, *others)}
    for layer in layers:
        parts = {name: tensors[f"{PREFIX}{layer}.{name}.weight"] for name in ("lora_A", "lora_B")}
        weight = base[f"{layer}.weight"]
        assert (parts["lora_A"].shape, parts["lora_B"].shape) == ((RANK, weight.shape[1]), (weight.shape[0], RANK))
        path = layer.replace("layers.", "layers_").replace(".", "/")
        kernel = flatten(expected)[f"{path}/kernel"]
        merged = weight + ALPHA / RANK * peft_files.product(parts, weight.shape)
        np.testing.assert_allclose(kernel.T, merged, rtol=0, atol=1e-5 * np.abs(merged).max(), err_msg=layer)


def test_a_model_of_another_shape_than_the_checkpoint_has_no_adapter(checkpoint, recipe, tmp_path, caplog):
    recipe = dataclasses.replace(recipe, resolution=48)
    model = prepare_model(recipe, checkpoint)
    save_adapter(tmp_path / "adapter", recipe, model, checkpoint, model.params)
    assert not (tmp_path / "adapter").exists()
    assert "no adapter is written: vision_model.embeddings.position_embedding.weight" in caplog.text


def test_a_run_writes_its_adapter_beside_the_model(checkpoint, tmp_path, monkeypatch):
    def trained_at_once(step, state, *args, **kwargs):
        after = types.SimpleNamespace(average_params=moved_additions(state.params))
        return after, 1, False

    monkeypatch.setattr(run_module, "run_loop", trained_at_once)
    data = write_pairs(tmp_path / "data", 1)
    run = train(data, checkpoint, tmp_path / "run", "lora", **{"batch_size": 8, "lora.rank": RANK})
    written = flatten(siglip_jax.read_checkpoint(run.directory / "model").params)
    found = flatten(siglip_jax.read_checkpoint(run.directory / "adapter").params)
    start = flatten(siglip_jax.read_checkpoint(checkpoint).params)
    path = "text_model/encoder/layers_0/mlp/fc1/kernel"
    assert np.abs(written[path] - start[path]).max() > 0.1
    for path, x in written.items():
        np.testing.assert_allclose(found[path], x, rtol=0, atol=1e-6 * np.abs(x).max(), err_msg=path)
