"""Directories of open_clip: what its configuration says survives, and the tokenizer that it names is there."""

import json
import shutil

import numpy as np
import pytest

import siglip_jax
from siglip_jax.checkpoints import convert
from siglip_jax.checkpoints.formats import _timm_tower
from siglip_jax.processing.text.canonical import canonicalize
from tests.support import gemma_tokenizer
from tests.support.scaled_variants import random_checkpoint
from tests.support.tiny_checkpoint import tiny_config

SAID = {  # what only open_clip's configuration holds
    "model_cfg": {
        "text_cfg": {
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2",
            "tokenizer_kwargs": {"clean": "canonicalize", "language": "en"},
        },
        "vision_cfg": {"timm_model_pretrained": True, "timm_drop_path": 0.1},
        "init_logit_scale": 2.5,
    },
    "preprocess_cfg": {"mean": [0.4] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "longest"},
    "version": "4.2",
}


@pytest.fixture(autouse=True)
def tiny_timm(monkeypatch):
    """timm's base model is of the size of the tiny checkpoint."""
    monkeypatch.setattr(_timm_tower, "SIZES", {"base": (32, 2, 64, 4)})


def merged(d, e):
    return d | {key: merged(d.get(key, {}), value) if isinstance(value, dict) else value for key, value in e.items()}


def read_json(directory):
    return json.loads((directory / "open_clip_config.json").read_text())


def open_clip_directory(directory, config, said):
    """Writes a directory as open_clip publishes it, with further entries in its configuration; returns that."""
    siglip_jax.write_checkpoint(directory, random_checkpoint(config, np.dtype(np.float32)), "open_clip")
    (directory / "config.json").unlink()
    d = merged(read_json(directory), said)
    (directory / "open_clip_config.json").write_text(json.dumps(d))
    return d


@pytest.mark.parametrize("through", ["open_clip", "huggingface", "big_vision", "orbax"])
def test_what_a_configuration_says_survives_every_format(tmp_path, through):
    said = open_clip_directory(tmp_path / "in", tiny_config(vocab_size=60), SAID)
    between = tmp_path / ("between.npz" if through == "big_vision" else "between")
    siglip_jax.write_checkpoint(between, siglip_jax.read_checkpoint(tmp_path / "in"), through)
    siglip_jax.write_checkpoint(tmp_path / "out", siglip_jax.read_checkpoint(between), "open_clip")
    assert read_json(tmp_path / "out") == said
    assert "open_clip" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_the_image_size_and_sequence_of_a_naflex_model_survive(tmp_path):
    config = tiny_config(vocab_size=60, flexible=True)
    made = open_clip_directory(tmp_path / "in", config, {})
    assert made["model_cfg"]["vision_cfg"]["image_size"] == 32  # 4 x 4 positions of patches of 8 pixels
    said = merged(made, {"model_cfg": {"vision_cfg": {"image_size": 384, "image_seq_len": 1024}}})
    (tmp_path / "in" / "open_clip_config.json").write_text(json.dumps(said))
    checkpoint = siglip_jax.read_checkpoint(tmp_path / "in")
    assert checkpoint.config.vision_config == config.vision_config
    siglip_jax.write_checkpoint(tmp_path / "out", checkpoint, "open_clip")
    assert read_json(tmp_path / "out") == said


def test_sizes_follow_the_model_and_not_the_old_configuration(tmp_path):
    open_clip_directory(tmp_path / "in", tiny_config(vocab_size=60), SAID)
    convert(tmp_path / "in", tmp_path / "out", "open_clip", resolution=64, text_length=32)
    cfg = read_json(tmp_path / "out")["model_cfg"]
    assert (cfg["vision_cfg"]["image_size"], cfg["text_cfg"]["context_length"]) == (64, 32)
    assert cfg["vision_cfg"]["timm_model_name"] == "vit_base_patch8_siglip_64"
    assert cfg["text_cfg"]["hf_tokenizer_name"] == "timm/ViT-B-16-SigLIP2"


@pytest.mark.parametrize("kept", [None, 5, "x", [], {"model_cfg": 5}, {"model_cfg": {"text_cfg": "x"}}])
def test_a_foreign_key_of_config_json_does_not_replace_what_open_clip_needs(tmp_path, kept):
    made = random_checkpoint(tiny_config(vocab_size=60).replace(extra={"open_clip": kept}), np.dtype(np.float32))
    siglip_jax.write_checkpoint(tmp_path, made, "open_clip")
    cfg = read_json(tmp_path)["model_cfg"]
    assert (cfg["text_cfg"]["vocab_size"], cfg["vision_cfg"]["image_size"]) == (60, 32)


@pytest.mark.parametrize(
    ("vocabulary", "name", "clean"),
    [
        (32_000, "timm/ViT-B-16-SigLIP", "canonicalize"),
        (250_000, "timm/ViT-B-16-SigLIP-i18n-256", "canonicalize"),
        (256_000, "timm/ViT-B-16-SigLIP2-256", "lower"),
    ],
)
def test_the_tokenizer_of_a_released_vocabulary_has_its_name(tmp_path, vocabulary, name, clean):
    siglip_jax.write_checkpoint(tmp_path, random_checkpoint(tiny_config(vocabulary), np.dtype(np.float32)), "open_clip")
    cfg = read_json(tmp_path)["model_cfg"]["text_cfg"]
    assert (cfg["hf_tokenizer_name"], cfg["tokenizer_kwargs"]) == (name, {"clean": clean})


@pytest.mark.slow
@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_the_directory_has_the_tokenizer_that_it_names(tmp_path, checkpoint, second, converted):
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(checkpoint, source)
    if second:
        for name in ("spiece.model", "tokenizer_config.json"):
            (source / name).unlink()
        gemma_tokenizer.train(source / "tokenizer.json")
        gemma_tokenizer.write_settings(source)
    if converted:
        convert(source, out, "open_clip")
    else:
        siglip_jax.write_checkpoint(out, siglip_jax.read_checkpoint(source), "open_clip")
    cfg = read_json(out)["model_cfg"]["text_cfg"]
    assert cfg["hf_tokenizer_name"]  # without a name, open_clip takes CLIP's vocabulary
    assert cfg["tokenizer_kwargs"] == {"clean": "lower" if second else "canonicalize"}

    # What `open_clip.get_tokenizer("local-dir:out")` does.
    transformers = pytest.importorskip("transformers", reason="transformers is not installed here")
    texts = ["a photo of a cat", "This is a Photo, of TWO dogs!", "a " * 100]
    cleaned = [" ".join(text.lower().split()) if second else canonicalize(text) for text in texts]
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    ids = theirs(cleaned, max_length=cfg["context_length"], padding="max_length", truncation=True).input_ids
    assert np.array_equal(
        ids, siglip_jax.SiglipProcessor.from_pretrained(source)(text=texts, truncation=True)["input_ids"]
    )
