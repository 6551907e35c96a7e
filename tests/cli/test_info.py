"""`siglip-jax info`: the facts about a checkpoint."""

import json
import math
import os
import shutil
import socket
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from siglip_jax.checkpoints.keymap import architecture_of, key_table
from siglip_jax.configs.configuration import SiglipConfig
from siglip_jax.configs.variants import VARIANTS, find
from siglip_jax.models import SiglipModel, SiglipVisionModel

NAME, COMMIT = "google/siglip-base-patch16-224", "0123456789abcdef0123456789abcdef01234567"
UNKNOWN = ("path", "stored_as", "bytes", "weight_files", "temperature", "bias", "processor_files")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub, and a list of the connections that were tried."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    tried: list[object] = []

    def refuse(*arguments: object, **options: object) -> None:
        tried.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield tmp_path / "hub"
    assert tried == []


def put_in_cache(cache: Path, name: str, files: Path) -> Path:
    """Lays files out as `huggingface_hub` does and returns their directory."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(files, repository / "snapshots" / COMMIT))


def write_headers(directory: Path, config: SiglipConfig) -> None:
    """Writes a checkpoint whose weights are a hole in the file: headers and sizes are true, and it takes no room."""
    header, end = {}, 0
    for row in key_table(config, architecture_of(config)):
        if row.key not in header:
            start, end = end, end + 2 * math.prod(row.tensor_shape)
            header[row.key] = {"dtype": "BF16", "shape": row.tensor_shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    config.save_pretrained(directory)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        os.truncate(file.fileno(), 8 + len(text) + end)


def test_json(run, checkpoint):
    ran = run("info", checkpoint, "--json")
    assert (ran.status, ran.err) == (0, "")
    facts = json.loads(ran.out)
    model, params = SiglipModel.from_pretrained(checkpoint)
    size = {part: sum(x.size for x in jax.tree.leaves(params[part])) for part in ("text_model", "vision_model")}
    assert facts["parameters"] == size | {"temperature_and_bias": 2, "total": sum(size.values()) + 2}
    assert facts["bytes"] == (checkpoint / "model.safetensors").stat().st_size
    assert list(facts["stored_as"]) == ["float32"]
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
    assert facts["variant"] is None


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
    assert facts["stored_as"]["bfloat16"] > 50
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


def test_variants(run):
    ran = run("info", "--variants")
    assert (ran.status, ran.err) == (0, "")
    header, *rows, units, metrics = ran.out.splitlines()
    assert header.split() == ["name", "M", "px", "text", "IN-1k", "T->I", "I->T"]
    assert "in %" in units and "COCO" in metrics
    assert max(map(len, ran.out.splitlines())) <= 80
    assert [row.split()[0] for row in rows] == [variant.name for variant in VARIANTS]
    assert {len(row) for row in rows} == {len(header)}
    assert rows[0].split()[1:] == ["203", "224", "64", "76.2", "47.2", "64.5"]
    assert rows[6].split()[1:] == ["877", "224", "16", "82.2", "50.8", "69.0"]
    assert rows[-1].split()[1:] == ["1,136", "any", "64", "83.5", "55.1", "71.2"]
    assert "\x1b" not in ran.out


def test_variants_as_json(run):
    entries = json.loads(run("info", "--variants", "--json").out)
    assert entries == json.loads(json.dumps([variant.to_dict() for variant in VARIANTS]))
    assert entries[0]["token_ids"]["Zürich"] == [262, 761, 5879, 5345, 1]
    assert entries[0]["answers"][1]["values"] == [[-0.7567, -10.3354]]
    assert entries[-1]["image_size"] is None


def test_variants_on_a_narrow_terminal_keep_their_names(run_on_terminal):
    ran = run_on_terminal("info", "--variants", columns=40)
    assert ran.status == 0
    text = ran.out
    assert "\x1b[36m" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("google/")]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        (v.name, f"{v.parameters / 1e6:,.0f}", f"{v.coco_image_to_text:.1f}") for v in VARIANTS
    ]


def test_variants_of_a_model(run):
    ran = run("info", NAME, "--variants")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == f"siglip-jax: info must have a model or --variants, got both; leave out {NAME!r} or --variants\n"


@pytest.mark.parametrize("name", [NAME, "siglip-base-patch16-224", "webli_en_b16_224_63724782.npz"])
def test_a_released_checkpoint_that_is_not_here(run, cache, name):
    facts = json.loads(run("info", name, "--json").out)
    assert facts["model"] == NAME
    assert facts["format"] == "registry"
    assert [facts[key] for key in UNKNOWN] == [None] * len(UNKNOWN)
    tower = {"width": 768, "depth": 12, "heads": 12, "mlp_width": 3072}
    assert facts["vision"] == tower | {"image_size": 224, "patch_size": 16, "patches": 196}
    assert facts["text"] == tower | {"length": 64, "vocabulary": 32000, "embedding_width": 768}
    parts = {"text_model": 110_271_744, "vision_model": 92_884_224, "temperature_and_bias": 2}
    assert facts["parameters"] == parts | {"total": 203_155_970}
    assert facts["variant"] == json.loads(json.dumps(find(NAME).to_dict()))


def test_a_released_checkpoint_that_is_not_here_in_words(run, cache):
    ran = run("info", "siglip-so400m-patch16-256-i18n")
    assert (ran.status, ran.err) == (0, "")
    lines = {name: value.strip() for name, value in (line.split("  ", 1) for line in ran.out.splitlines())}
    assert lines["model"] == "google/siglip-so400m-patch16-256-i18n"
    assert lines["path"] == "not on this disk; from the registry"
    assert lines["original"].startswith("gs://big_vision/siglip/webli_i18n_so400m_16_256_78061115.npz, without the")
    assert lines["tokenizer"] == "sentencepiece, vocabulary mc4"
    assert lines["resampling"] == "bicubic"
    assert lines["published"].startswith(
        "ImageNet zero-shot 80.8 %, COCO R@1 text to image 49.4 %, image to text 68.6 % (arXiv "
    )
    assert not {"weights", "temperature", "processor", "same shapes as"} & set(lines)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.short_name)
def test_every_released_checkpoint_is_described(run, cache, variant):
    facts = json.loads(run("info", variant.name, "--json").out)
    assert facts["parameters"]["total"] == variant.parameters
    assert facts["vision"]["image_size"] == variant.image_size
    assert facts["architecture"] == ("Siglip2Model" if variant.model_type == "siglip2" else "SiglipModel")
    image = dict(line.split("  ", 1) for line in run("info", variant.name).out.splitlines())["image"]
    assert ("any size" in image) == (variant.image_size is None)


def test_the_cache_of_the_hub_goes_before_the_registry(run, cache, checkpoint):
    path = put_in_cache(cache, NAME, checkpoint)
    facts = json.loads(run("info", "siglip-base-patch16-224", "--json").out)
    assert facts["path"] == str(path)
    assert facts["vision"]["width"] == 32
    assert facts["temperature"] == pytest.approx(math.exp(2), rel=1e-6)
    assert facts["variant"] is None


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_a_part_in_the_cache_is_not_the_checkpoint(run, cache, checkpoint, missing):
    (put_in_cache(cache, NAME, checkpoint) / missing).unlink()
    facts = json.loads(run("info", NAME, "--json").out)
    assert (facts["path"], facts["format"]) == (None, "registry")


def test_what_is_damaged_in_the_cache_is_said(run, cache, checkpoint):
    (put_in_cache(cache, NAME, checkpoint) / "model.safetensors").write_bytes(b"")
    ran = run("info", NAME)
    assert (ran.status, ran.out) == (2, "")
    assert "model.safetensors" in ran.err


def test_the_registry_needs_no_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "from the registry" in run("info", NAME).out


def test_a_path_goes_before_the_registry(run, checkpoint, tmp_path, monkeypatch):
    shutil.copytree(checkpoint, tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    facts = json.loads(run("info", NAME, "--json").out)
    assert (facts["path"], facts["vision"]["width"]) == (NAME, 32)


@pytest.mark.slow
def test_files_with_the_shapes_of_a_released_checkpoint(run, tmp_path):
    write_headers(tmp_path, SiglipConfig.from_variant("siglip2-base-patch16-256"))
    facts = json.loads(run("info", tmp_path, "--json").out)
    assert facts["model"] == facts["path"] == str(tmp_path)
    assert facts["variant"]["name"] == "google/siglip2-base-patch16-256"
    assert facts["temperature"] == 1
    lines = {
        name: value.strip() for name, value in (line.split("  ", 1) for line in run("info", tmp_path).out.splitlines())
    }
    assert lines["same shapes as"] == "google/siglip2-base-patch16-256"
    assert lines["published for it"].startswith("ImageNet zero-shot 79.1 %")
    assert "original" not in lines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tower", "changes"),
    [
        ("text_config", {"vocab_size": 32_001}),
        ("text_config", {"num_attention_heads": 16}),
        ("vision_config", {"image_size": 448, "patch_size": 32}),
    ],
)
def test_other_shapes_are_of_no_released_checkpoint(run, tmp_path, tower, changes):
    config = SiglipConfig.from_variant(NAME)
    write_headers(tmp_path, config.replace(**{tower: getattr(config, tower).replace(**changes)}))
    assert json.loads(run("info", tmp_path, "--json").out)["variant"] is None
    assert "same shapes" not in run("info", tmp_path).out
