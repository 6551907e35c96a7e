"""`siglip-jax info`: what it says about a checkpoint."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from siglip_jax.models import SiglipModel, SiglipVisionModel


def test_json(run, checkpoint):
    ran = run("info", checkpoint, "--json")
    assert (ran.status, ran.err) == (0, "")
    facts = json.loads(ran.out)
    model, params = SiglipModel.from_pretrained(checkpoint)
    size = {part: sum(x.size for x in jax.tree.leaves(params[part])) for part in ("text_model", "vision_model")}
    assert facts["parameters"] == size | {"temperature_and_bias": 2, "total": sum(size.values()) + 2}
    assert facts["bytes"] == (checkpoint / "model.safetensors").stat().st_size
    assert list(facts["stored_as"]) == ["F32"]
    assert facts["temperature"] == pytest.approx(math.exp(2), rel=1e-6)
    assert facts["bias"] == -1
    assert facts["architecture"] == "SiglipModel"
    assert facts["format"] == "huggingface"
    tower = {"width": 32, "depth": 2, "heads": 4, "mlp_width": 64}
    assert facts["vision"] == tower | {"image_size": 32, "patch_size": 8, "patches": 16}
    vocabulary = model.config.text_config.vocab_size
    assert facts["text"] == tower | {"length": 64, "vocabulary": vocabulary, "embedding_width": 32}
    assert facts["processor_files"] == ["spiece.model", "tokenizer_config.json", "preprocessor_config.json"]
    assert "versions" not in facts


def test_plain_text(run, checkpoint):
    ran = run("info", checkpoint)
    assert ran.status == 0
    lines = dict(line.split("  ", 1) for line in ran.out.splitlines())
    assert lines["image tower"].strip() == "width 32, depth 2, 4 heads, MLP 64"
    assert lines["temperature"].strip() == f"{math.exp(2):.4f}"
    assert "\x1b" not in ran.out


def test_half_precision_shards_and_weights_are_not_read(run, checkpoint, tmp_path):
    model, params = SiglipModel.from_pretrained(checkpoint, param_dtype=jnp.bfloat16)
    model.save_pretrained(tmp_path, params, max_shard_size=40_000)
    facts = json.loads(run("info", tmp_path, "--json").out)
    assert facts["stored_as"]["BF16"] > 50
    assert len(facts["weight_files"]) > 1
    assert facts["temperature"] == pytest.approx(math.exp(2), rel=1e-6)
    assert facts["processor_files"] == []


def test_one_tower(run, checkpoint, tmp_path):
    model, params = SiglipVisionModel.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path, params)
    ran = run("info", tmp_path, "--json")
    facts = json.loads(ran.out)
    assert facts["architecture"] == "SiglipVisionModel"
    assert facts["text"] is facts["temperature"] is facts["bias"] is None
    assert facts["vision"]["width"] == 32
    assert "text tower" not in run("info", tmp_path).out
