"""What is computed after loading a file of another project is what that project's own model computes."""

import functools
import importlib.util
import json
import logging

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.core import FrozenDict

import siglip_jax
from siglip_jax import SiglipModel, SiglipVisionModel
from siglip_jax.checkpoints.formats import _timm_tower
from siglip_jax.configs.variants import find
from siglip_jax.params import flatten, unflatten
from tests.support import big_vision_modules, open_clip_golden
from tests.support.cases import GOLDEN
from tests.support.scaled_variants import DTYPES, random_checkpoint, scaled_config, write_as_released

BOTH = ["text_model", "vision_model"]
# Of the 14/384 one a rest of every image is cut off; the last one has no text head.
SHAPES = [
    "siglip-base-patch16-224",
    "siglip-so400m-patch14-224",
    "siglip-so400m-patch14-384",
    "siglip2-giant-opt-patch16-256",
    "siglip-so400m-patch16-256-i18n",
]
TOLERANCE = 1e-5  # of the largest value

# Compiled once for a module and its shapes, however many files its parameters come from, and without great effort.
apply = jax.jit(
    lambda module, params, *inputs: module.apply({"params": params}, *inputs),
    static_argnums=0,
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def gentle(params):
    """Random parameters scaled so that activations stay of order one, as in trained models."""
    flat = {}
    for path, x in flatten(params).items():
        leaf = path.rpartition("/")[2]
        if leaf == "kernel":
            x = x / np.sqrt(np.prod(x.shape[:-1]))
        elif leaf == "scale":
            x = 1 + 0.1 * x
        elif leaf == "logit_scale":
            x = np.log(10) + 0.1 * x
        elif leaf == "bias":
            x = 0.1 * x
        flat[path] = x.astype(np.float32)
    return unflatten(flat)


def make(name):
    """A checkpoint in the proportions of a released one, without the text head that was not released."""
    variant = find(name)
    config = scaled_config(variant)
    checkpoint = random_checkpoint(config, DTYPES["float32"])
    params = gentle(checkpoint.params)
    if not variant.text_head:
        del params["text_model"]["head"]
    return siglip_jax.Checkpoint(config, params, "big_vision", checkpoint.architecture)


def inputs(config, texts=2, images=2):
    random = np.random.RandomState(1)
    text, vision = config.text_config, config.vision_config
    ids = random.randint(0, text.vocab_size, (texts, text.max_position_embeddings)).astype(np.int32)
    pixels = random.uniform(-1, 1, (images, vision.image_size, vision.image_size, 3)).astype(np.float32)
    return ids, pixels


def big_vision(checkpoint, path, stacked, ids, pixels):
    """What big_vision's modules make of the tree in a file."""
    text, vision = checkpoint.config.text_config, checkpoint.config.vision_config

    def encoder(c, name):
        sizes = {"width": c.hidden_size, "depth": c.num_hidden_layers, "mlp_dim": c.intermediate_size}
        return sizes | {"heads": c.num_attention_heads, "scan": name in stacked}

    out = text.projection_size if "head" in checkpoint.params["text_model"] else None
    model = big_vision_modules.TwoTowers(
        FrozenDict(encoder(vision, "vision_model") | {"patch": vision.patch_size}),
        FrozenDict(encoder(text, "text_model") | {"vocabulary": text.vocab_size, "out": out}),
    )
    return apply(model, big_vision_modules.read_tree(path), pixels, ids)


def ours(path, ids, pixels):
    model, params = SiglipModel.from_pretrained(path)
    out = apply(model, params, ids, pixels)
    return {
        "image": out.vision_model_output.pooler_output,
        "text": out.text_model_output.pooler_output,
        "zimg": out.image_embeds,
        "ztxt": out.text_embeds,
        "logits": out.logits_per_image,
    }


def error(found, expected):
    """The largest difference, relative to the largest value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


def assert_same(found, expected):
    errors = {name: error(found[name], expected[name]) for name in expected}
    assert max(errors.values()) <= TOLERANCE, errors


@pytest.mark.slow
@pytest.mark.parametrize("stacked", [[], BOTH], ids=["one_by_one", "stacked"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_formulae_of_big_vision(tmp_path, name, stacked):
    checkpoint = make(name)
    ids, pixels = inputs(checkpoint.config)
    path = write_as_released(tmp_path / find(name).npz, checkpoint, stacked)
    expected = big_vision(checkpoint, path, stacked, ids, pixels)
    assert 0.1 < np.abs(expected["image"]).mean() < 10 and 0.1 < np.abs(expected["text"]).mean() < 10
    assert_same(ours(path, ids, pixels), expected)


def test_the_position_table_that_old_files_hold_in_two_parts(tmp_path):
    checkpoint = make("siglip-base-patch16-224")
    ids, pixels = inputs(checkpoint.config)
    path = write_as_released(tmp_path / "new.npz", checkpoint, [])
    with np.load(path) as file:
        tree = dict(file)
    stray = np.random.RandomState(2).standard_normal(tree["params/txt/pos_embedding"].shape).astype(np.float32)
    np.savez(tmp_path / "old.npz", **tree, **{"params/txt/Encoder_0/pos_embedding": stray})
    expected = big_vision(checkpoint, tmp_path / "old.npz", [], ids, pixels)
    assert_same(ours(tmp_path / "old.npz", ids, pixels), expected)
    without = big_vision(checkpoint, path, [], ids, pixels)
    assert error(without["text"], expected["text"]) > 0.1  # the second part matters


@pytest.mark.parametrize("stacked", [[], BOTH], ids=["one_by_one", "stacked"])
def test_the_image_tower_of_a_file_of_two(tmp_path, stacked):
    checkpoint = make("siglip2-giant-opt-patch16-256")
    ids, pixels = inputs(checkpoint.config)
    path = write_as_released(tmp_path / "both.npz", checkpoint, stacked)
    expected = big_vision(checkpoint, path, stacked, ids, pixels)
    model, params = SiglipVisionModel.from_pretrained(f"{path}:img")
    assert error(apply(model, params, pixels).pooler_output, expected["image"]) <= TOLERANCE


@functools.cache
def golden(name):
    """open_clip's configuration and state dict, the inputs, and what open_clip computes."""
    with np.load(GOLDEN / f"open_clip_{name}.npz") as file:
        arrays = dict(file)
    config = json.loads(str(arrays.pop("config")))
    state = {key[6:]: arrays.pop(key).astype(np.float32) for key in list(arrays) if key.startswith("state/")}
    ids, pixels = arrays.pop("ids"), arrays.pop("pixels").astype(np.float32)
    return config, state, ids, pixels, arrays


@pytest.fixture(params=open_clip_golden.MODELS)
def name(request, monkeypatch):
    """A small model of open_clip's; its sizes are under the names of timm's models, which say how many heads."""
    monkeypatch.setattr(_timm_tower, "SIZES", open_clip_golden.SIZES)
    return request.param


@pytest.fixture
def directory(name, tmp_path):
    """What open_clip publishes on the Hub: its weights and its configuration."""
    config, state, *_ = golden(name)
    out = tmp_path / "open_clip"
    out.mkdir()
    safetensors.numpy.save_file(state, out / "open_clip_model.safetensors", metadata={"format": "pt"})
    (out / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return out


def channels_last(pixels):
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


@pytest.mark.slow
def test_a_directory_of_open_clip(name, directory, caplog):
    _, _, ids, pixels, expected = golden(name)
    with caplog.at_level(logging.WARNING):
        found = ours(directory, ids, channels_last(pixels))
    assert ("exact GELU in the text and image tower" in caplog.text) == (name == "exact")
    assert_same(found, expected)


@pytest.mark.slow
def test_the_two_gelus_can_be_told_apart(name, directory):
    """The comparison above is fine enough to see the difference of the activations, in either tower alone."""
    _, _, ids, pixels, expected = golden(name)
    read = siglip_jax.read_checkpoint(directory)
    act = "gelu" if name == "tanh" else "gelu_pytorch_tanh"
    text, vision = read.config.text_config, read.config.vision_config
    config = read.config.replace(text_config=text.replace(hidden_act=act), vision_config=vision.replace(hidden_act=act))
    out = apply(SiglipModel(config), read.params, ids, channels_last(pixels))
    assert error(out.text_embeds, expected["ztxt"]) > 3 * TOLERANCE
    assert error(out.image_embeds, expected["zimg"]) > 3 * TOLERANCE


def write_again(directory, out):
    """Through Hugging Face's layout, so that nothing of open_clip's own files is left to copy."""
    siglip_jax.write_checkpoint(out / "between", siglip_jax.read_checkpoint(directory), "huggingface")
    siglip_jax.write_checkpoint(out / "written", siglip_jax.read_checkpoint(out / "between"), "open_clip")
    return out / "written"


@pytest.mark.slow
def test_what_is_written_as_open_clip_is_what_open_clip_had(name, directory, tmp_path):
    config, state, ids, pixels, expected = golden(name)
    written = write_again(directory, tmp_path)
    tensors = safetensors.numpy.load_file(written / "open_clip_model.safetensors")
    assert {key: x.shape for key, x in tensors.items()} == {key: x.shape for key, x in state.items()}
    assert all(tensors[key].tobytes() == x.tobytes() for key, x in state.items())
    cfg = json.loads((written / "open_clip_config.json").read_text())["model_cfg"]
    text = cfg["text_cfg"]
    assert int(text["width"] * text.pop("mlp_ratio")) == state["text.transformer.resblocks.0.mlp.c_fc.bias"].size
    expected_text = {key: x for key, x in config["text_cfg"].items() if key != "mlp_ratio"}
    # The source names no tokenizer; open_clip then tokenizes with CLIP's vocabulary, so one is named.
    expected_text |= {"hf_tokenizer_name": "local-dir", "tokenizer_kwargs": {"clean": "canonicalize"}}
    assert cfg == config | {"text_cfg": expected_text}
    assert_same(ours(written, ids, channels_last(pixels)), expected)


@pytest.mark.parametrize("width, mlp", [(768, 3072), (1152, 4304), (44, 98), (28, 61), (88, 109)])
def test_open_clip_finds_the_width_of_the_mlp_from_its_ratio(width, mlp):
    assert int(width * _timm_tower.mlp_ratio(mlp, width)) == mlp


if importlib.util.find_spec("open_clip") and importlib.util.find_spec("torch"):  # tests/open_clip_golden.py says how

    def test_open_clip_itself_computes_what_the_golden_files_hold(name, directory):
        config, state, ids, pixels, expected = golden(name)
        found = open_clip_golden.compute(open_clip_golden.build(config), state, ids, pixels)
        assert_same(found, expected)
        assert_same(ours(directory, ids, channels_last(pixels)), found)

    def test_open_clip_loads_what_is_written(name, directory, tmp_path):
        _, _, ids, pixels, expected = golden(name)
        written = write_again(directory, tmp_path)
        model = open_clip_golden.import_open_clip().create_model(f"local-dir:{written}").eval()
        assert_same(open_clip_golden.outputs(model, ids, pixels), expected)
