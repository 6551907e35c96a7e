"""Directories of timm: what is computed after reading is what timm computes, and what is written is what timm had."""

import functools
import json

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

import siglip_jax
from siglip_jax.checkpoints import convert, describe
from siglip_jax.checkpoints.formats import _timm_tower, timm
from siglip_jax.params import flatten
from tests.support import timm_golden
from tests.support.scaled_variants import random_checkpoint
from tests.support.timm_golden import config_of, golden, state_of, write_timm
from tests.support.tiny_checkpoint import tiny_config

TOLERANCE = 1e-5  # of the largest value
CLASSES = {
    "map": "SiglipVisionModel",
    "gap": "SiglipVisionModel",
    "map_classifier": "SiglipForImageClassification",
    "gap_classifier": "SiglipForImageClassification",
    "naflex": "Siglip2VisionModel",
    "naflex_classifier": "Siglip2ForImageClassification",
}
# timm's models of SigLIP whose entrypoints say act_layer="gelu_tanh"; the others have timm's default, the exact GELU.
TANH = [
    *("naflexvit_base_patch16_siglip", "naflexvit_so400m_patch16_siglip"),
    *("vit_base_patch32_siglip_256", "vit_base_patch32_siglip_gap_256"),
    *("vit_giantopt_patch16_siglip_256", "vit_giantopt_patch16_siglip_384"),
    *("vit_giantopt_patch16_siglip_gap_256", "vit_giantopt_patch16_siglip_gap_384"),
    *("vit_large_patch16_siglip_512", "vit_large_patch16_siglip_gap_512"),
    *(f"vit_so400m_patch16_siglip_{gap}{size}" for gap in ("", "gap_") for size in (256, 384, 512)),
]
EXACT = [
    *(f"vit_base_patch16_siglip_{gap}{size}" for gap in ("", "gap_") for size in (224, 256, 384, 512)),
    *(f"vit_large_patch16_siglip_{gap}{size}" for gap in ("", "gap_") for size in (256, 384)),
    *(f"vit_so400m_patch14_siglip_{gap}{size}" for gap in ("", "gap_") for size in (224, 378, 384)),
    *("vit_so400m_patch14_siglip_gap_448", "vit_so400m_patch14_siglip_gap_896"),
]


@functools.partial(
    jax.jit,
    static_argnums=0,
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)
def apply(module, params, *inputs):
    with jax.default_matmul_precision("highest"):
        return module.apply({"params": params}, *inputs)


def computed(directory, case):
    checkpoint = siglip_jax.read_checkpoint(directory)
    module, params = getattr(siglip_jax, checkpoint.architecture).from_pretrained(directory)
    pixels = golden(case)["pixels"].astype(np.float32)
    if pixels.ndim == 3:
        shapes = np.tile(np.int32([timm_golden.GRID]), (len(pixels), 1))
        out = apply(module, params, pixels, np.ones(pixels.shape[:2], np.int32), shapes)
    else:
        out = apply(module, params, pixels.transpose(0, 2, 3, 1))
    if "classifier" in case:
        return out.logits
    return out.last_hidden_state.mean(1) if out.pooler_output is None else out.pooler_output


@pytest.mark.parametrize("case", timm_golden.MODELS)
def test_what_is_computed_is_what_timm_computes(case, tmp_path):
    directory = write_timm(tmp_path / "in", case)
    checkpoint = siglip_jax.read_checkpoint(directory)
    assert (checkpoint.format, checkpoint.architecture) == ("timm", CLASSES[case])
    found, expected = np.asarray(computed(directory, case)), golden(case)["out"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize("case", timm_golden.MODELS)
def test_what_is_written_is_what_timm_had(case, tmp_path):
    source = write_timm(tmp_path / "in", case)
    siglip_jax.write_checkpoint(tmp_path / "out", siglip_jax.read_checkpoint(source))
    written = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert {k: (x.shape, x.tobytes()) for k, x in written.items()} == {
        k: (x.shape, x.tobytes()) for k, x in state_of(case).items()
    }
    theirs, ours = config_of(case), json.loads((tmp_path / "out" / "config.json").read_text())
    assert ours["pretrained_cfg"] == theirs["pretrained_cfg"]
    same = ("num_classes", "num_features", "global_pool")
    assert [ours[key] for key in same] == [theirs[key] for key in same]
    # The model of another name is timm's with these arguments: all that fix the shapes and what is computed.
    args = {"embed_dim": 24, "depth": 2, "num_heads": 3}
    assert {key: ours["model_args"][key] for key in args} == args
    assert int(24 * ours["model_args"]["mlp_ratio"]) == int(24 * timm_golden.SMALL["mlp_ratio"])
    tanh = ("act_layer" in ours["model_args"]) != (ours["architecture"] in TANH)
    assert tanh == (theirs["architecture"] in TANH)
    assert siglip_jax.read_checkpoint(tmp_path / "out").config == siglip_jax.read_checkpoint(source).config


@pytest.mark.parametrize(("names", "act"), [(TANH, "gelu_pytorch_tanh"), (EXACT, "gelu")])
def test_the_activation_and_the_pooling_are_those_of_each_model(names, act):
    assert len({*TANH, *EXACT}) == 36
    for name in names:
        tower = _timm_tower.parsed(name)
        assert (tower.hidden_act, tower.pools) == (act, "_gap_" not in name), name


@pytest.mark.parametrize("name", [*TANH, *EXACT])
def test_a_tower_of_a_released_size_gets_the_name_of_timms_model(name, monkeypatch):
    tower = _timm_tower.parsed(name)
    monkeypatch.setitem(_timm_tower.SIZES, tower.size, (12, 1, 18, 3))
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "intermediate_size": 18, "num_attention_heads": 3}
    fields = sizes | {"patch_size": tower.patch_size, "vision_use_head": tower.pools, "hidden_act": tower.hidden_act}
    if tower.image_size:
        config = siglip_jax.SiglipVisionConfig(**fields, image_size=tower.image_size)
    else:
        config = siglip_jax.Siglip2VisionConfig(**fields)
    assert timm._name_and_args(config) == (name, {})
    other = {"gelu": "gelu_pytorch_tanh", "gelu_pytorch_tanh": "gelu"}[tower.hidden_act]
    args = {"act_layer": "gelu" if other == "gelu" else "gelu_tanh"}
    assert timm._name_and_args(config.replace(hidden_act=other)) == (name, args)


def test_the_image_tower_of_a_whole_model_is_written_for_timm_and_back(tmp_path):
    siglip_jax.write_checkpoint(tmp_path / "in", random_checkpoint(tiny_config(60), np.dtype(np.float32)))
    done = convert(tmp_path / "in", tmp_path / "timm", "timm", tower="image")
    assert (done.different, done.architecture) == ((), "SiglipVisionModel")
    back = siglip_jax.read_checkpoint(tmp_path / "timm")
    expected = siglip_jax.read_checkpoint(tmp_path / "in", architecture="SiglipVisionModel")
    assert back.config == expected.config
    assert {p: x.tobytes() for p, x in flatten(back.params).items()} == {
        p: np.asarray(x).tobytes() for p, x in flatten(expected.params).items()
    }
    facts = describe(tmp_path / "timm")
    assert (facts["format"], facts["vision"]["heads"], facts["parameters"]["total"]) == (
        "timm",
        4,
        sum(np.size(x) for x in flatten(expected.params).values()),
    )
    with pytest.raises(ValueError, match="must be an image tower or an image classifier, got a SiglipModel"):
        convert(tmp_path / "in", tmp_path / "no", "timm")


@pytest.mark.parametrize("through", ["huggingface", "orbax"])
def test_labels_and_preprocessing_survive_other_formats(tmp_path, through, caplog):
    config = config_of("map_classifier") | {"label_names": ["a", "b", "c", "d", "e"]}
    config["pretrained_cfg"] |= {"crop_pct": 0.95, "mean": [0.4, 0.5, 0.6]}
    source = write_timm(tmp_path / "in", "map_classifier", config)
    siglip_jax.write_checkpoint(tmp_path / "between", siglip_jax.read_checkpoint(source), through)
    # The classifier of `transformers` is on the mean of the patches: its readers are told, and this one reads it right.
    assert ("transformers" in caplog.text) == (through == "huggingface")
    between = siglip_jax.read_checkpoint(tmp_path / "between")
    assert between.config.id2label == dict(enumerate("abcde"))
    found, expected = np.asarray(computed(tmp_path / "between", "map_classifier")), golden("map_classifier")["out"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
    siglip_jax.write_checkpoint(tmp_path / "out", between, "timm")
    ours = json.loads((tmp_path / "out" / "config.json").read_text())
    assert ours["label_names"] == list("abcde")
    assert ours["pretrained_cfg"] == config["pretrained_cfg"]


def test_a_file_is_read_by_the_configuration_beside_it(tmp_path):
    directory = write_timm(tmp_path / "in", "gap")
    (directory / "model.safetensors").rename(directory / "weights.safetensors")
    checkpoint = siglip_jax.read_checkpoint(directory / "weights.safetensors")
    assert (checkpoint.format, checkpoint.config.image_size, checkpoint.config.vision_use_head) == ("timm", 48, False)


def test_the_older_configuration_of_one_level_is_read(tmp_path):
    config = config_of("map")
    old = config["pretrained_cfg"] | {"architecture": config["architecture"], "model_args": config["model_args"]}
    directory = write_timm(tmp_path / "in", "map", old)
    assert siglip_jax.read_checkpoint(directory).config.image_size == 48


@pytest.mark.parametrize(
    ("case", "change", "said"),
    [
        ("map", {"architecture": "vit_base_patch16_clip_224"}, "got timm's 'vit_base_patch16_clip_224'"),
        ("map", {"architecture": "resnet50"}, "must be SigLIP"),
        ("map", {"model_args": {"num_heads": 3, "qk_norm": True}}, "got {'qk_norm': True}"),
        ("gap", {"model_args": {"num_heads": 3, "fc_norm": True}}, "got {'fc_norm': True}"),
        ("naflex", {"model_args": {"num_heads": 3, "pos_embed_interp_mode": "bicubic"}}, "pos_embed_interp_mode"),
        ("map", {"model_args": {"num_heads": 3, "act_layer": "mish"}}, "act_layer must be one of gelu_tanh"),
        ("map", {"model_args": {"num_heads": 3, "img_size": [48, 32]}}, "must be that of square images"),
        ("map", {"model_args": {"num_heads": 5}}, "divisible by num_attention_heads"),
        ("map", {"model_args": [1]}, "a missing or invalid field"),
        ("map", {"pretrained_cfg": {"input_size": "wide"}}, "input_size must be 3 positive integers"),
        ("map_classifier", {"model_args": {"num_heads": 3, "global_pool": "max"}}, "got {'global_pool': 'max'}"),
    ],
)
def test_what_is_not_a_siglip_of_timm_is_refused_in_one_line(case, change, said, tmp_path):
    directory = write_timm(tmp_path / "in", case, config_of(case) | change)
    with pytest.raises(ValueError) as caught:
        siglip_jax.read_checkpoint(directory)
    assert said in str(caught.value) and "\n" not in str(caught.value) and "config.json" in str(caught.value)


def test_what_timm_cannot_compute_is_not_written(tmp_path):
    config = tiny_config(60)
    whole = random_checkpoint(config, np.dtype(np.float32))
    tower = siglip_jax.Checkpoint(
        config.vision_config.replace(layer_norm_eps=1e-5),
        {"vision_model": whole.params["vision_model"]},
        "timm",
        "SiglipVisionModel",
    )
    with pytest.raises(ValueError, match="layer_norm_eps must be 1e-06 for timm, got 1e-05"):
        siglip_jax.write_checkpoint(tmp_path / "eps", tower)
    classifier = siglip_jax.Checkpoint(
        config.replace(id2label={0: "a", 1: "b"}),
        {
            "vision_model": whole.params["vision_model"],
            "classifier": {"kernel": np.zeros((32, 2), np.float32), "bias": np.zeros(2, np.float32)},
        },
        "timm",
        "SiglipForImageClassification",
    )
    with pytest.raises(ValueError, match="must pool as its tower does"):
        siglip_jax.write_checkpoint(tmp_path / "mean", classifier)
    assert not (tmp_path / "eps").exists() and not (tmp_path / "mean").exists()


@pytest.mark.parametrize(
    ("change", "resized"),
    [
        ({}, (70, 53)),  # timm's default for these models: the shorter side to 48 / 0.9, then the middle of 48 x 48
        ({"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"}, (48, 48)),
        ({"crop_mode": "squash", "crop_pct": 0.8, "mean": [0.1, 0.2, 0.3]}, (60, 60)),
    ],
)
def test_images_are_prepared_as_the_configuration_says(tmp_path, change, resized):
    config = config_of("map")
    config["pretrained_cfg"] |= change
    directory = write_timm(tmp_path / "in", "map", config)
    image = PIL.Image.fromarray(np.random.RandomState(0).randint(0, 256, (60, 80, 3), dtype=np.uint8))
    cfg = config["pretrained_cfg"]
    pixels = image.resize(resized, {"bicubic": 3, "bilinear": 2}[cfg["interpolation"]])
    left, top = (round((side - 48) / 2) for side in resized)
    pixels = np.asarray(pixels, np.float32)[top : top + 48, left : left + 48] / 255
    expected = (pixels - np.float32(cfg["mean"])) / np.float32(cfg["std"])
    siglip = siglip_jax.load(directory)
    found = siglip.processor(images=[image])["pixel_values"][0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    if not change:
        done = convert(directory, tmp_path / "out", "huggingface")
        assert done.different == () and (tmp_path / "out" / "preprocessor_config.json").is_file()


def test_preprocessing_that_no_image_processor_does_is_refused(tmp_path):
    config = config_of("map")
    config["pretrained_cfg"]["crop_mode"] = "border"
    with pytest.raises(ValueError, match="crop_mode must be"):
        siglip_jax.load(write_timm(tmp_path / "in", "map", config))
