"""LoRA adapters of PEFT are merged as they are read, into what PEFT merges them into."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import siglip_jax
from siglip_jax.checkpoints import convert, describe
from siglip_jax.checkpoints.hub import needed
from siglip_jax.params import flatten
from tests.support import peft_files
from tests.support.scaled_variants import random_checkpoint
from tests.support.tiny_checkpoint import tiny_config

TOLERANCE = 1e-6  # of the largest value
QUERY = "vision_model.encoder.layers.1.self_attn.q_proj"
OUT = "text_model.encoder.layers.0.self_attn.out_proj"
FC = "vision_model.head.mlp.fc1"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    siglip_jax.write_checkpoint(directory, random_checkpoint(tiny_config(60), np.dtype(np.float32)), "huggingface")
    return directory


@pytest.fixture
def tensors(base):
    return safetensors.numpy.load_file(base / "model.safetensors")


def merged_file(base, tmp_path, tensors):
    """A checkpoint with other tensors, as `merge_and_unload` and `save_pretrained` leave it."""
    out = tmp_path / "expected"
    out.mkdir()
    safetensors.numpy.save_file({k: np.float32(x) for k, x in tensors.items()}, out / "model.safetensors")
    (out / "config.json").write_text((base / "config.json").read_text())
    return siglip_jax.read_checkpoint(out).params


def assert_close(found, expected, tolerance=TOLERANCE):
    found, expected = flatten(found), flatten(expected)
    assert set(found) == set(expected)
    for path, x in expected.items():
        limit = tolerance * np.abs(np.float64(x)).max()
        np.testing.assert_allclose(np.float64(found[path]), np.float64(x), rtol=0, atol=limit, err_msg=path)


def additions(tensors, layers, rank=4, seed=0):
    random = np.random.RandomState(seed)
    return {
        layer: peft_files.addition(random, tensors[f"{layer}.weight"].shape, rank, "token_embedding" in layer)
        for layer in layers
    }


def named(parts):
    return {f"{layer}.{name}": x for layer, p in parts.items() for name, x in p.items()}


EVERY = [QUERY, OUT, FC, "vision_model.embeddings.patch_embedding", "text_model.embeddings.token_embedding"]


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({"lora_alpha": 6}, [1.5] * 5),
        ({"lora_alpha": 6, "use_rslora": True}, [3.0] * 5),
        ({"alpha_pattern": {"q_proj": 2, ".*head.*fc1": 1.5, "vision_model": 9}}, [0.5, 2.0, 0.375, 2.0, 2.0]),
    ],
)
def test_every_kind_of_layer_is_merged(base, tensors, tmp_path, config, scales):
    parts = additions(tensors, EVERY)
    adapter = peft_files.write(tmp_path / "adapter", named(parts), base_model_name_or_path=str(base), **config)
    expected = dict(tensors)
    for (layer, p), scale in zip(parts.items(), scales, strict=True):
        weight = tensors[f"{layer}.weight"]
        expected[f"{layer}.weight"] = weight + scale * peft_files.product(p, weight.shape)
    checkpoint = siglip_jax.read_checkpoint(adapter)
    assert_close(checkpoint.params, merged_file(base, tmp_path, expected))
    assert (checkpoint.architecture, checkpoint.directory) == ("SiglipModel", base)
    facts = describe(adapter)
    assert facts["notes"] == [f"adapter {adapter} merged: LoRA of 5 layers"]
    assert facts["parameters"] == describe(base)["parameters"]


def test_the_packed_attention_of_the_pooling_head_is_merged_as_peft_does(base, tensors, tmp_path):
    at, random = "vision_model.head.attention", np.random.RandomState(1)
    packed = peft_files.addition(random, (96, 32), 6)
    out = peft_files.addition(random, (32, 32), 6)
    names = {at: packed, f"{at}.base_layer.out_proj": out}
    adapter = peft_files.write(tmp_path / "adapter", named(names), lora_alpha=9, alpha_pattern={"head.attention": 3})
    expected = dict(tensors)
    expected[f"{at}.in_proj_weight"] = tensors[f"{at}.in_proj_weight"] + 0.5 * peft_files.product(packed, (96, 32))
    # PEFT adds the product of the output layer twice.
    expected[f"{at}.out_proj.weight"] = tensors[f"{at}.out_proj.weight"] + 1.0 * peft_files.product(out, (32, 32))
    checkpoint = siglip_jax.read_checkpoint(adapter, base=base)
    assert_close(checkpoint.params, merged_file(base, tmp_path, expected))


def test_dora_scales_each_row_to_its_magnitude(base, tensors, tmp_path):
    layers = [QUERY, "vision_model.embeddings.patch_embedding", "text_model.embeddings.token_embedding"]
    parts, random, expected, magnitudes = additions(tensors, layers), np.random.RandomState(2), dict(tensors), {}
    for layer, p in parts.items():
        weight = tensors[f"{layer}.weight"]
        axis = 0 if "token_embedding" in layer else 1
        summed = weight + 2.0 * peft_files.product(p, weight.shape)
        flat = summed.reshape(len(weight), -1)
        magnitude = random.uniform(0.5, 2, flat.shape[1 - axis]).astype(np.float32)
        flat = flat / np.linalg.norm(flat, axis=axis, keepdims=True) * np.expand_dims(magnitude, axis)
        expected[f"{layer}.weight"] = flat.reshape(weight.shape)
        shape = (1, -1, 1, 1) if weight.ndim == 4 else (-1,)
        magnitudes[f"{layer}.lora_magnitude_vector"] = magnitude.reshape(shape)
    adapter = peft_files.write(tmp_path / "adapter", named(parts) | magnitudes, use_dora=True)
    read = siglip_jax.read_checkpoint(adapter, base=base)
    assert_close(read.params, merged_file(base, tmp_path, expected))


def test_biases_are_replaced_and_moved(base, tensors, tmp_path):
    parts = additions(tensors, [QUERY, FC])
    new, shift = np.full(32, 0.25, np.float32), np.arange(64, dtype=np.float32)
    more = {f"{QUERY}.base_layer.bias": new, f"{OUT}.bias": 2 * new, f"{FC}.lora_B.bias": shift}
    adapter = peft_files.write(tmp_path / "adapter", named(parts) | more, bias="all", lora_bias=True)
    expected = tensors | {f"{QUERY}.bias": new, f"{OUT}.bias": 2 * new}
    expected[f"{FC}.bias"] = tensors[f"{FC}.bias"] + 2.0 * shift
    for layer, p in parts.items():
        weight = tensors[f"{layer}.weight"]
        expected[f"{layer}.weight"] = weight + 2.0 * peft_files.product(p, weight.shape)
    read = siglip_jax.read_checkpoint(adapter, base=base)
    assert_close(read.params, merged_file(base, tmp_path, expected))


def test_a_classifier_that_the_adapter_saves_makes_the_model_a_classifier(base, tensors, tmp_path):
    random = np.random.RandomState(3)
    kernel, bias = random.standard_normal((3, 32)).astype(np.float32), np.float32([1, 2, 3])
    saved = {"classifier.weight": kernel, "classifier.bias": bias}
    parts = named(additions(tensors, [QUERY]))
    adapter = peft_files.write(tmp_path / "adapter", parts | saved, modules_to_save=["classifier"])
    checkpoint = siglip_jax.read_checkpoint(adapter, base=base)
    assert (checkpoint.architecture, checkpoint.config.num_labels) == ("SiglipForImageClassification", 3)
    np.testing.assert_array_equal(checkpoint.params["classifier"]["kernel"], kernel.T)
    np.testing.assert_array_equal(checkpoint.params["classifier"]["bias"], bias)
    model, params = siglip_jax.SiglipForImageClassification.from_pretrained(adapter, base=base)
    assert params["classifier"]["kernel"].shape == (32, 3)


@pytest.mark.parametrize("cls", ["SiglipVisionModel", "SiglipTextModel"])
def test_an_adapter_of_one_tower_is_merged_into_the_whole_model(base, tensors, tmp_path, cls):
    tower = "vision_model" if "Vision" in cls else "text_model"
    layer = "encoder.layers.0.mlp.fc2"
    parts = additions(tensors, [f"{tower}.{layer}"])
    short = {name.removeprefix(f"{tower}."): x for name, x in named(parts).items()}
    mapping = {"base_model_class": cls}
    adapter = peft_files.write(tmp_path / "adapter", short, auto_mapping=mapping, base_model_name_or_path=str(base))
    weight = tensors[f"{tower}.{layer}.weight"]
    change = 2.0 * peft_files.product(parts[f"{tower}.{layer}"], weight.shape)
    expected = merged_file(base, tmp_path, tensors | {f"{tower}.{layer}.weight": weight + change})
    assert_close(siglip_jax.read_checkpoint(adapter).params, expected)
    read = siglip_jax.read_checkpoint(adapter, architecture=cls)
    assert_close(read.params, {tower: expected[tower]})


def test_the_sum_is_rounded_once_to_the_dtype_of_the_checkpoint(base, tensors, tmp_path):
    half = tmp_path / "half"
    convert(base, half, "huggingface", dtype="bfloat16")
    parts = additions(tensors, [QUERY])
    adapter = peft_files.write(tmp_path / "adapter", named(parts), base_model_name_or_path=str(half))
    path = "vision_model/encoder/layers_1/self_attn/q_proj/kernel"
    stored = np.asarray(flatten(siglip_jax.read_checkpoint(half).params)[path])
    expected = (np.float64(stored) + 2.0 * peft_files.product(parts[QUERY], (32, 32)).T).astype(np.float32)
    found = flatten(siglip_jax.read_checkpoint(adapter).params)[path]
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(np.float32(found), expected, rtol=2**-8)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_injected_into_a_checkpoint_is_merged(base, tensors, tmp_path, dora):
    parts = named(additions(tensors, [QUERY, "text_model.embeddings.token_embedding"]))
    parts |= {"vision_model.post_layernorm.weight": np.full(32, 2, np.float32)}
    if dora:
        parts[f"{QUERY}.lora_magnitude_vector"] = np.linspace(0.5, 2, 32, dtype=np.float32)
    apart = peft_files.write(tmp_path / "apart", parts, use_dora=dora)
    together = tmp_path / "together"
    together.mkdir()
    state = peft_files.inject(tensors, parts, saved=["vision_model.post_layernorm"])
    safetensors.numpy.save_file(state, together / "model.safetensors")
    (together / "config.json").write_text((base / "config.json").read_text())
    with pytest.raises(ValueError, match="must have adapter_config.json beside it, which holds the scale"):
        siglip_jax.read_checkpoint(together)
    (together / "adapter_config.json").write_text((apart / "adapter_config.json").read_text())
    found, expected = siglip_jax.read_checkpoint(together), siglip_jax.read_checkpoint(apart, base=base)
    assert_close(found.params, expected.params, tolerance=0)
    assert describe(together)["notes"] == [
        "prefix base_model.model. left out of the names of tensors",
        f"adapter {together} merged: LoRA of 2 layers, 1 tensors replaced",
    ]


@pytest.mark.parametrize("format", ["big_vision", "orbax", "open_clip"])
def test_the_checkpoint_below_may_be_of_any_format(base, tensors, tmp_path, format):
    other = tmp_path / ("base.npz" if format == "big_vision" else "base")
    siglip_jax.write_checkpoint(other, siglip_jax.read_checkpoint(base), format)
    adapter = peft_files.write(tmp_path / "adapter", named(additions(tensors, EVERY)))
    found, expected = siglip_jax.read_checkpoint(adapter, base=other), siglip_jax.read_checkpoint(adapter, base=base)
    assert_close(found.params, expected.params)


def test_a_converted_adapter_is_a_whole_checkpoint(base, tensors, tmp_path):
    parts = additions(tensors, [QUERY])
    adapter = peft_files.write(tmp_path / "adapter", named(parts), base_model_name_or_path=str(base))
    done = convert(adapter, tmp_path / "out.npz", "big_vision")
    assert (done.different, done.changes) == ((), (f"adapter {adapter} merged: LoRA of 1 layers",))
    assert_close(siglip_jax.read_checkpoint(tmp_path / "out.npz").params, siglip_jax.read_checkpoint(adapter).params, 0)
    with pytest.raises(ValueError, match="base must be None for a checkpoint that is no adapter"):
        siglip_jax.read_checkpoint(base, base=base)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "LOHA"}, "the adapter must be LoRA, got peft_type 'LOHA'"),
        ({"init_lora_weights": "pissa"}, "must leave the weights below it alone, got 'pissa'"),
        ({"layer_replication": [[0, 1]]}, "must be plain LoRA, got {'layer_replication': [[0, 1]]}"),
        ({"use_dora": True}, "use_dora must be False for an adapter without lora_magnitude_vector"),
        ({"lora_alpha": "much"}, "lora_alpha must be a number"),
        ({"alpha_pattern": {"(.*)*(.*)*": 1}}, "at most 3 repetitions"),
        ({"alpha_pattern": {"(": 1}}, "must hold regular expressions"),
        ({"alpha_pattern": [1]}, "must be numbers by pattern"),
    ],
)
def test_what_is_not_merged_exactly_is_refused_in_one_line(base, tensors, tmp_path, config, said):
    adapter = peft_files.write(tmp_path / "adapter", named(additions(tensors, [QUERY])), **config)
    with pytest.raises(ValueError) as caught:
        siglip_jax.read_checkpoint(adapter, base=base)
    assert said in str(caught.value) and "\n" not in str(caught.value) and "adapter_config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda parts: {f"{QUERY}.lora_A.weight": parts[f"{QUERY}.lora_A.weight"]}, "must have lora_A and lora_B"),
        (lambda parts: parts | {f"{QUERY}.lora_A.weight": np.zeros((4, 5), np.float32)}, "must fit"),
        (lambda parts: parts | {f"{QUERY}.lora_A.weight": np.zeros((0, 32), np.float32)}, "must fit"),
        (
            lambda parts: {f"visual.{k}": x for k, x in parts.items()} | {"lm_head.weight": np.zeros(1)},
            "lm_head.weight",
        ),
        (lambda parts: {k.replace("layers.1", "layers.7"): x for k, x in parts.items()}, "which lacks"),
        (lambda parts: parts | {f"{QUERY}.bias": np.zeros(5, np.float32)}, "of the wrong shape"),
        (lambda parts: {k.replace("vision_model.", ""): x for k, x in parts.items()}, "which lacks"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(base, tensors, tmp_path, change, said):
    parts = change(named(additions(tensors, [QUERY])))
    adapter = peft_files.write(tmp_path / "adapter", parts)
    with pytest.raises(ValueError) as caught:
        siglip_jax.read_checkpoint(adapter, base=base)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_adapter_is_fetched_from_the_hub_with_its_configuration():
    files = ["README.md", "adapter_config.json", "adapter_model.bin", "adapter_model.safetensors", "runs/log"]
    assert needed(files) == ["adapter_config.json", "adapter_model.safetensors"]


def test_the_checkpoint_below_must_be_known_and_whole(base, tensors, tmp_path):
    adapter = peft_files.write(tmp_path / "adapter", named(additions(tensors, [QUERY])))
    with pytest.raises(ValueError, match="must name the checkpoint below it, got none; pass base="):
        siglip_jax.read_checkpoint(adapter)
    with pytest.raises(ValueError, match="must be a whole one"):
        siglip_jax.read_checkpoint(adapter, base=adapter)
    d = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(d | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(FileNotFoundError, match="gone"):
        siglip_jax.read_checkpoint(adapter)


@pytest.mark.parametrize("below", ["nowhere/at/all", "empty"])
def test_a_checkpoint_below_that_cannot_be_read_is_told_with_the_adapter(base, tensors, tmp_path, monkeypatch, below):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    adapter = peft_files.write(tmp_path / "adapter", named(additions(tensors, [QUERY])), base_model_name_or_path=below)
    with pytest.raises((OSError, ValueError), match=f"adapter: the checkpoint below .* got '{below}': .*; pass base="):
        siglip_jax.read_checkpoint(adapter)
    assert siglip_jax.read_checkpoint(adapter, base=base).directory == base


def test_both_towers_without_a_class_are_ambiguous_only_where_both_have_the_layer(base, tensors, tmp_path):
    layer = "encoder.layers.0.mlp.fc2"
    parts = named(additions(tensors, [f"vision_model.{layer}"]))
    short = {name.removeprefix("vision_model."): x for name, x in parts.items()}
    adapter = peft_files.write(tmp_path / "adapter", short, auto_mapping=None)
    with pytest.raises(ValueError, match="which lacks"):
        siglip_jax.read_checkpoint(adapter, base=base)
    head = named(additions(tensors, ["vision_model.head.mlp.fc1"]))
    only = {name.removeprefix("vision_model."): x for name, x in head.items()}
    siglip_jax.read_checkpoint(peft_files.write(tmp_path / "head", only, auto_mapping=None), base=base)
