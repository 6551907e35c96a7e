"""Image towers inside larger models: found by their tensors, with the outputs of the code that owns them."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import siglip_jax
from siglip_jax import Siglip2VisionModel, SiglipVisionModel
from siglip_jax.checkpoints.formats import towers
from siglip_jax.checkpoints.keymap import key_table
from siglip_jax.params import flatten
from tests.support import larger_models
from tests.support.larger_models import BUCKETED, FAMILIES, LAYOUTS, VISION

RANDOM = np.random.RandomState
FIXED = [name for name in FAMILIES if name != "lfm2_vl"]


# Compiled once for all families of equal sizes, and without great effort.
compiled = jax.jit(
    lambda module, resized, params, pixels, mask: module.apply(
        {"params": params}, pixels, interpolate_pos_encoding=resized, patch_attention_mask=mask
    ),
    static_argnums=(0, 1),
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)


def apply(module, params, pixels, resized=False, mask=None):
    return compiled(SiglipVisionModel(module.config.replace(extra={})), resized, params, pixels, mask)


def assert_close(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def reference(family, tower, pixels, **kwargs):
    """What the tower computes: the last hidden state and, for one with a pooling head, the embedding."""
    import torch

    x = torch.tensor(pixels.transpose(0, 3, 1, 2))
    with torch.no_grad():
        if family == "granite_docling":  # its tower goes on with the connector
            return tower.post_layernorm(tower.encoder(tower.embeddings(x, **kwargs), None).last_hidden_state), None
        out = tower(x, **kwargs)
    return out.last_hidden_state, out.pooler_output if family == "phi4_multimodal" else None


def assert_written_back(directory, params):
    """The unchanged tower gives the files of the larger model, bit by bit."""
    out = directory.parent / f"{directory.name}-out"
    siglip_jax.checkpoints.write_tower(directory, params, out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == {
        file.name: file.read_bytes() for file in directory.iterdir()
    }


@pytest.fixture(params=FIXED)
def family(request):
    return request.param


@pytest.mark.slow
def test_the_tower_of_every_family_computes_what_the_owning_class_computes(family, tmp_path):
    pytest.importorskip("torch", reason="torch has no CPU build here")
    model, tower = larger_models.build(family)
    model.save_pretrained(tmp_path)
    module, params = SiglipVisionModel.from_pretrained(tmp_path)
    pixels = RANDOM(1).standard_normal((2, 28, 28, 3)).astype(np.float32)
    other = RANDOM(2).standard_normal((2, 40, 64, 3)).astype(np.float32)  # 5 x 9 patches and a rest
    resized = not module.config.bucket_positions
    for images, kwargs in [(pixels, {}), (other, {"interpolate_pos_encoding": True} if resized else {})]:
        hidden, pooled = reference(family, tower, images, **kwargs)
        out = apply(module, params, images, bool(kwargs))
        assert_close(out.last_hidden_state, hidden)
        assert (out.pooler_output is None) == (pooled is None)
        if pooled is not None:
            assert_close(out.pooler_output, pooled)
    assert_written_back(tmp_path, params)
    facts = siglip_jax.checkpoints.describe(tmp_path)
    assert facts["part_of"] == family
    own = sum(p.numel() for n, p in tower.named_parameters() if n.startswith(towers._PARTS))
    assert facts["parameters"]["total"] == own


@pytest.mark.parametrize("family", ["idefics2", "phi4_multimodal"])
def test_images_of_several_sizes_in_one_batch(family, tmp_path):
    torch = pytest.importorskip("torch", reason="torch has no CPU build here")
    model, tower = larger_models.build(family)
    model.save_pretrained(tmp_path)
    module, params = SiglipVisionModel.from_pretrained(tmp_path)
    pixels = RANDOM(1).standard_normal((3, 42, 63, 3)).astype(np.float32)
    mask = np.zeros((3, 6, 9), bool)
    for image, (rows, columns) in zip(mask, [(6, 9), (3, 7), (5, 2)], strict=True):
        image[:rows, :columns] = True
    hidden, pooled = reference(family, tower, pixels, patch_attention_mask=torch.tensor(mask))
    out = apply(module, params, pixels, mask=mask)
    present = mask.reshape(3, -1)
    assert_close(np.asarray(out.last_hidden_state)[present], hidden.numpy()[present])
    if pooled is not None:
        assert_close(out.pooler_output, pooled)
    with pytest.raises(ValueError, match=r"patch_attention_mask must be .*\(3, 6, 9\), got \(3, 6, 8\)"):
        module.apply({"params": params}, pixels, patch_attention_mask=mask[:, :, :8])


def test_the_tower_of_variable_resolution_of_a_larger_model(tmp_path):
    torch = pytest.importorskip("torch", reason="torch has no CPU build here")
    model, tower = larger_models.build("lfm2_vl")
    model.save_pretrained(tmp_path)
    module, params = Siglip2VisionModel.from_pretrained(tmp_path)
    assert_written_back(tmp_path, params)
    pixels = RANDOM(1).standard_normal((2, 20, 7 * 7 * 3)).astype(np.float32)
    shapes, mask = np.array([(4, 5), (3, 2)], np.int32), np.ones((2, 20), np.int32)
    mask[1, 6:] = 0
    with torch.no_grad():
        expected = tower(torch.tensor(pixels), torch.tensor(mask), torch.tensor(shapes)).last_hidden_state.numpy()
    found = jax.jit(lambda p, *x: module.apply({"params": p}, *x).last_hidden_state)(params, pixels, mask, shapes)
    found = np.asarray(found)
    assert_close(found[mask == 1], expected[mask == 1])


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_other_code(layout, head, tmp_path, monkeypatch):
    monkeypatch.setitem(towers.HEADS, 24, 3)
    config, tensors = larger_models.write_layout(tmp_path, layout, head)
    module, params = SiglipVisionModel.from_pretrained(tmp_path)
    assert module.config.replace(extra={}) == config
    flat = flatten(params)
    rows = key_table(config, "SiglipVisionModel")
    assert set(flat) == {row.path for row in rows}
    assert all(np.array_equal(flat[row.path], row.param(tensors[row.key])) for row in rows)
    d = LAYOUTS[layout][1]
    assert siglip_jax.checkpoints.describe(tmp_path)["part_of"] == (d.get("model_type") or d["type"])


def test_the_width_says_the_heads_of_every_released_tower():
    from siglip_jax.configs.variants import VARIANTS

    assert {v.vision["hidden_size"]: v.vision["num_attention_heads"] for v in VARIANTS} == towers.HEADS


def test_a_width_of_no_released_tower_needs_a_vision_config(tmp_path):
    larger_models.write_layout(tmp_path, "llava")
    with pytest.raises(ValueError, match="config.json must describe an image tower of width 24.*add one with num_att"):
        SiglipVisionModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("part", ["paddleocr_vl_vision", "video_llama_3_vision", "minicpmv4_6_vision"])
def test_a_tower_that_computes_something_else_from_the_same_tensors_is_refused(part, tmp_path):
    """These have rotary positions or a merger between layers."""
    larger_models.write_layout(tmp_path, "eagle")
    d = {"model_type": "other", "vision_config": VISION | {"model_type": part}}
    (tmp_path / "config.json").write_text(json.dumps(d))
    with pytest.raises(ValueError, match=f"config.json: the image tower must be of one of .*, got model_type '{part}'"):
        siglip_jax.read_checkpoint(tmp_path)


def test_two_towers_are_named(tmp_path):
    _, tensors = larger_models.write_layout(tmp_path, "eagle")
    two = {f"{name}.{key}": x for name in ("left", "right") for key, x in tensors.items()}
    safetensors.numpy.save_file(two, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"must have one image tower, got 2 \('left.vision_model.', 'right.vision_mod"):
        siglip_jax.read_checkpoint(tmp_path)


def test_sizes_that_contradict_the_tensors_are_refused(tmp_path):
    larger_models.write_layout(tmp_path, "eagle")
    d = json.loads((tmp_path / "config.json").read_text())
    d["vision_config"]["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(d))
    with pytest.raises(ValueError, match="16 missing .vision_model.encoder.layers.2"):
        siglip_jax.read_checkpoint(tmp_path)


def test_a_tower_with_bucketed_positions_is_written_and_read_again(tmp_path):
    larger_models.write_layout(tmp_path / "in", "minicpmv")
    module, params = SiglipVisionModel.from_pretrained(tmp_path / "in")
    module.save_pretrained(tmp_path / "out", params)
    again, _ = SiglipVisionModel.from_pretrained(tmp_path / "out")
    assert again.config.bucket_positions and again.config.num_patches == 16
    assert "bucket_positions" not in siglip_jax.SiglipVisionConfig().to_dict()


def test_only_shards_with_tensors_of_the_tower_are_opened(tmp_path):
    _, tensors = larger_models.write_layout(tmp_path, "eagle")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(f"vision_model.{key}" for key in tensors)
    files = {name: f"model-0000{1 + (i > 7)}-of-00003.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: tensors[name.removeprefix("vision_model.")] for name in names if files[name] == file}
        safetensors.numpy.save_file(part, tmp_path / file)
    files["language_model.weight"] = "model-00003-of-00003.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    checkpoint = siglip_jax.read_checkpoint(tmp_path)
    assert len(flatten(checkpoint.params)) == len(key_table(checkpoint.config, "SiglipVisionModel"))
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00003.safetensors: no such file; the index beside it"):
        siglip_jax.read_checkpoint(tmp_path)


def test_bucketed_layouts_are_bucketed():
    assert {name for name in BUCKETED if name in FAMILIES} == {"idefics2", "idefics3", "smolvlm", "phi4_multimodal"}
