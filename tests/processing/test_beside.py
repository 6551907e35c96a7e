"""Processors of checkpoints that have none beside them: open_clip as published, big_vision, orbax, lone files."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest

import siglip_jax
from siglip_jax.checkpoints import convert
from siglip_jax.checkpoints.formats import released
from siglip_jax.checkpoints.formats.released import released_config
from siglip_jax.checkpoints.keymap import key_table
from siglip_jax.configs import VARIANTS, SiglipConfig
from siglip_jax.processing import SiglipImageProcessorPil, beside
from siglip_jax.processing.images import open_clip
from tests.support.tiny_checkpoint import picture, write_checkpoint

TEXTS = ["a photo of a cat", "two dogs"]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.short_name)
def test_the_sizes_of_a_released_checkpoint_say_its_processor(variant):
    config = SiglipConfig.from_variant(variant.name)
    likely = beside.variants_like(config)
    assert variant in likely and {v.vocabulary for v in likely} == {variant.vocabulary}
    assert {v.resample for v in likely} == {variant.resample}
    if variant.image_size:
        other = config.replace(vision_config=config.vision_config.replace(image_size=448))
        assert variant in beside.variants_like(other)
    assert {v.vocabulary for v in beside.variants_like(config.text_config)} >= {variant.vocabulary}
    shallow = config.replace(vision_config=config.vision_config.replace(num_hidden_layers=3))
    assert beside.variants_like(shallow) == ()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.short_name)
def test_the_shapes_of_a_released_checkpoint_say_its_configuration(variant):
    config = SiglipConfig.from_variant(variant.name)
    name = "Siglip2Model" if variant.model_type == "siglip2" else "SiglipModel"
    rows = key_table(config, name)
    shapes = {row.key: row.transform.to_tensor(np.broadcast_to(np.float32(0), row.shape)).shape for row in rows}
    assert released_config(shapes) == config
    tower = {key.removeprefix("text_model."): shape for key, shape in shapes.items() if key.startswith("text_model.")}
    assert released_config(tower).to_dict() | {"model_type": ""} == config.text_config.to_dict() | {"model_type": ""}
    tower = {key: shape for key, shape in shapes.items() if key.startswith("vision_model.")}
    assert released_config(tower) == config.vision_config
    assert released_config(tower | {"classifier.weight": (7, 768)}).num_labels == 7
    smaller = {key: shape for key, shape in shapes.items() if ".layers.3." not in key}
    assert released_config(smaller) is None and released_config({}) is None


def test_the_published_settings_are_those_of_the_files():
    """Compared with `preprocessor_config.json` of the repositories on the Hub."""
    fixed = beside.published_settings(SiglipConfig.from_variant("siglip2-so400m-patch14-384"), "bilinear")
    expected = {"size": {"height": 384, "width": 384}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    assert fixed == expected | {"image_processor_type": "SiglipImageProcessor"}
    naflex = beside.published_settings(SiglipConfig.from_variant("siglip2-base-patch16-naflex"), "bilinear")
    assert (naflex["patch_size"], naflex["max_num_patches"]) == (16, 256)


@pytest.fixture
def published(checkpoint, monkeypatch):
    """Makes the tiny checkpoint a released one, and returns what was asked of the Hub."""
    config = SiglipConfig.from_pretrained(checkpoint)
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    text = {name: getattr(config.text_config, name) for name in (*sizes, "vocab_size", "max_position_embeddings")}
    vision = {name: getattr(config.vision_config, name) for name in (*sizes, "image_size", "patch_size")}
    variant = dataclasses.replace(VARIANTS[0], name="owner/tiny", text=text, vision=vision)
    asked, real = [], beside._hub.resolve

    def resolve(name, **options):
        if name != "owner/tiny":
            return real(name, **options)
        asked.append((name, options))
        return checkpoint

    monkeypatch.setattr(beside, "VARIANTS", (variant,))
    monkeypatch.setattr(released, "VARIANTS", (variant,))
    monkeypatch.setattr(beside._hub, "resolve", resolve)
    return asked


def bare(source, target):
    """Copies a checkpoint without the files of its processor."""
    if source.is_file():
        return source
    side = shutil.ignore_patterns("spiece.model", "tokenizer*", "preprocessor*", "processor*", "special*")
    return shutil.copytree(source, target, ignore=side)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["big_vision", "orbax", "huggingface", "open_clip"])
def test_a_released_model_opens_without_its_processor(format, checkpoint, shared_siglip, published, tmp_path):
    target = tmp_path / ("model.npz" if format == "big_vision" else "model")
    convert(checkpoint, target, format)
    alone = bare(target, tmp_path / "alone")
    if format == "huggingface":
        (alone / "config.json").unlink()
        alone = alone / "model.safetensors"
    if format == "open_clip":
        (alone / "open_clip_config.json").unlink()
    siglip = siglip_jax.load(alone, local_files_only=True, cache_dir=tmp_path)
    assert published[-1] == ("owner/tiny", {"local_files_only": True, "cache_dir": tmp_path, "token": None})
    assert (
        siglip.processor.image_processor.to_dict().items()
        >= {"size": {"height": 32, "width": 32}, "resample": 3}.items()
    )
    image = picture(3)
    np.testing.assert_array_equal(siglip.encode_image(image), shared_siglip.encode_image(image))
    np.testing.assert_array_equal(siglip.encode_text(TEXTS), shared_siglip.encode_text(TEXTS))
    done = convert(alone, tmp_path / "again", "huggingface", resolution=48)
    assert {"preprocessor_config.json", "spiece.model", "tokenizer_config.json"} <= set(done.copied)
    again = siglip_jax.load(tmp_path / "again")
    assert again.processor.image_processor.size == {"height": 48, "width": 48} and again.processor.max_length == 64
    np.testing.assert_array_equal(again.encode_text(TEXTS), shared_siglip.encode_text(TEXTS))


def test_what_cannot_be_known_is_said(checkpoint, tmp_path, published, monkeypatch, caplog):
    convert(checkpoint, tmp_path / "model.npz", "big_vision")

    def offline(name, **options):
        if name != "owner/tiny":
            return Path(name)
        raise FileNotFoundError(f"{name}: no such directory here, and no connection")

    monkeypatch.setattr(beside._hub, "resolve", offline)
    with pytest.raises(FileNotFoundError, match="load needs the tokenizer of owner/tiny beside the weights, got none"):
        siglip_jax.load(tmp_path / "model.npz")
    assert siglip_jax.load(f"{tmp_path}/model.npz:img").encode_image(picture(3)).shape == (1, 32)
    done = convert(tmp_path / "model.npz", tmp_path / "out", "huggingface")
    assert done.copied == ("preprocessor_config.json",) and "load needs the tokenizer of owner/tiny" in caplog.text
    monkeypatch.setattr(beside, "VARIANTS", ())
    with pytest.raises(FileNotFoundError, match="load needs the tokenizer and the image processor beside the weights"):
        siglip_jax.load(tmp_path / "model.npz")
    with pytest.raises(FileNotFoundError, match="image processor, preprocessor_config.json, beside the weights"):
        siglip_jax.load(f"{tmp_path}/model.npz:img")
    with pytest.raises(FileNotFoundError, match="load needs the tokenizer beside the weights, got none"):
        siglip_jax.load(f"{tmp_path}/model.npz:txt")


def write_open_clip(directory, preprocess):
    """Writes a directory of open_clip as it is published: its own configuration, and nothing of `transformers`."""
    write_checkpoint(directory / "source")
    config = siglip_jax.SiglipConfig.from_pretrained(directory / "source")
    tower = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 12, "num_hidden_layers": 1}
    tower["hidden_act"] = "gelu"
    config = config.replace(
        text_config=config.text_config.replace(**tower, projection_size=48),
        vision_config=config.vision_config.replace(**tower),
    )
    model = siglip_jax.SiglipModel(config)
    ids, pixels = np.zeros((1, 64), np.int32), np.zeros((1, 32, 32, 3), np.float32)
    params = jax.jit(model.init)(jax.random.key(0), ids, pixels)["params"]
    model.save_pretrained(directory / "source", params)
    convert(directory / "source", directory / "open_clip", "open_clip")
    out = directory / "open_clip"
    d = json.loads((out / "open_clip_config.json").read_text())
    d["model_cfg"]["vision_cfg"]["timm_model_name"] = "vit_base_patch8_siglip_32"
    d["preprocess_cfg"] = preprocess
    (out / "open_clip_config.json").write_text(json.dumps(d))
    for name in ("config.json", "preprocessor_config.json"):
        (out / name).unlink()
    return out, model, params


PREPROCESS = {
    "mean": [0.48, 0.45, 0.4],
    "std": [0.2, 0.3, 0.25],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}


@pytest.mark.slow
def test_a_directory_of_open_clip_opens_as_published(tmp_path):
    out, model, params = write_open_clip(tmp_path, PREPROCESS)
    assert siglip_jax.load(out / "open_clip_model.safetensors").processor.image_processor.resample == 2
    siglip = siglip_jax.load(out)
    assert siglip.config.vision_config.num_attention_heads == 12
    image = PIL.Image.fromarray(picture(3, (50, 41)))
    small = np.asarray(image.resize((32, 32), PIL.Image.Resampling.BILINEAR), np.float64) / 255
    expected = ((small - PREPROCESS["mean"]) / PREPROCESS["std"]).astype(np.float32)
    np.testing.assert_allclose(siglip.pixels(image)[0], expected, rtol=1e-5, atol=1e-6)
    features = model.apply({"params": params}, expected[None], method="get_image_features")
    features = np.asarray(features) / np.linalg.norm(features)
    np.testing.assert_allclose(siglip.encode_image(image), features, rtol=1e-5, atol=1e-5)
    assert siglip.processor.max_length == 64 and siglip.encode_text(TEXTS).shape == (2, 48)
    processor = siglip_jax.SiglipProcessor.from_pretrained(out)
    assert processor.max_length == 64
    assert processor.image_processor.to_dict() == siglip.processor.image_processor.to_dict()
    done = convert(out, tmp_path / "hf", "huggingface")
    assert "preprocessor_config.json" in done.copied
    np.testing.assert_array_equal(siglip_jax.load(tmp_path / "hf").encode_image(image), siglip.encode_image(image))


def settings(preprocess, **vision):
    return open_clip.settings_of({"model_cfg": {"vision_cfg": vision}, "preprocess_cfg": preprocess})


def test_defaults_and_modes_are_open_clip_s():
    found = settings({}, image_size=64)
    assert found["image_mean"] == [0.48145466, 0.4578275, 0.40821073] and found["resample"] == 3
    assert found["size"] == {"shortest_edge": 64} and found["crop_size"] == {"height": 64, "width": 64}
    image = picture(1, (90, 64))  # open_clip resizes the shorter side, then cuts out the middle
    (pixels,) = SiglipImageProcessorPil.from_dict(found)(image).pixel_values
    expected = (image[:, 13:77] / 255 - found["image_mean"]) / found["image_std"]
    np.testing.assert_allclose(pixels, expected, rtol=1e-5, atol=1e-6)
    assert settings({"resize_mode": "squash", "size": [32, 48]})["size"] == {"height": 32, "width": 48}
    assert settings({"resize_mode": "squash", "interpolation": "random"}, image_size=8)["resample"] == 3
    naflex = settings({"interpolation": "bilinear"}, timm_model_name="naflexvit_base_patch16_siglip", image_size=256)
    assert (naflex["patch_size"], naflex["max_num_patches"], naflex["resample"]) == (16, 256, 2)


@pytest.mark.parametrize(
    ("preprocess", "vision", "words"),
    [
        ({"resize_mode": "longest"}, {}, "resize_mode must be 'squash', or 'shortest' for squares, got 'longest'"),
        ({"size": [32, 48]}, {}, "resize_mode must be 'squash', or 'shortest' for squares, got 'shortest' for 32 x 48"),
        ({"interpolation": "box"}, {}, "interpolation must be one of 'bilinear', 'bicubic', 'random', got 'box'"),
        ({"mean": "grey"}, {}, "mean must be a number or one per channel"),
        ({}, {"image_size": -3}, "image_size must be a size in whole pixels"),
    ],
)
def test_other_preprocessing_is_refused(preprocess, vision, words):
    with pytest.raises(ValueError, match=words):
        settings(preprocess, **vision)
