"""A tower goes back into a copy of the larger model that it is from, and nothing else changes."""

import json
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import siglip_jax
from siglip_jax import SiglipModel, SiglipVisionModel
from siglip_jax.checkpoints import write_tower
from siglip_jax.checkpoints.formats import towers
from siglip_jax.checkpoints.safetensors_file import read_safetensors
from siglip_jax.params import flatten, unflatten
from tests.support import cases, larger_models


@pytest.fixture(autouse=True)
def heads(monkeypatch):
    monkeypatch.setitem(towers.HEADS, 24, 3)


def make(directory, layout="eagle", head=False, dtype=np.float32):
    """A larger model in a file, with a tokenizer, a folder and a hidden folder beside it."""
    larger_models.write_layout(directory, layout, head)
    path = directory / "model.safetensors"
    tensors = {key: x.astype(dtype) for key, x in safetensors.numpy.load_file(path).items()}
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt", "note": "kept"})
    (directory / "tokenizer.json").write_bytes(b"{} \n")
    for folder in ("assets", ".cache"):
        (directory / folder).mkdir()
        (directory / folder / "a.bin").write_bytes(bytes(range(256)))
    return directory


def load(directory):
    return SiglipVisionModel.from_pretrained(directory, param_dtype=jnp.float32)


def contents(directory):
    return {str(f.relative_to(directory)): f.read_bytes() for f in directory.rglob("*") if f.is_file()}


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [*((layout, np.float32) for layout in larger_models.LAYOUTS), ("phi4mm", np.float16), ("ovis", ml_dtypes.bfloat16)],
)
def test_an_unchanged_tower_gives_the_same_bytes(layout, dtype, tmp_path):
    directory = make(tmp_path / "in", layout, head=layout == "phi4mm", dtype=dtype)
    _, params = load(directory)
    write_tower(directory, params, tmp_path / "out")
    expected = contents(directory)
    del expected[os.path.join(".cache", "a.bin")]
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize("stacked", [False, True])
def test_a_changed_tower_is_read_again_and_all_else_is_as_it_was(stacked, tmp_path):
    """Two dtypes in one tower, as in pi0 of lerobot, two shards, and a tensor of another kind in the same shard."""
    directory = make(tmp_path / "in")
    path = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    for key in tensors:
        if "embeddings" not in key:
            tensors[key] = tensors[key].astype(ml_dtypes.bfloat16)
    tensors["language_model.ids"] = np.arange(5)
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        safetensors.numpy.save_file({key: tensors[key] for key in part}, directory / file)
    path.unlink()
    index = {"weight_map": {key: file for file, part in halves.items() for key in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    module, params = SiglipVisionModel.from_pretrained(directory, param_dtype=jnp.float32, scan_layers=stacked)
    changed = jax.tree.map(lambda x: x * 1.25 + 0.125, params)
    write_tower(directory, changed, tmp_path / "out")
    before, after = contents(directory), contents(tmp_path / "out")
    assert set(after) == set(before) - {os.path.join(".cache", "a.bin")}
    assert {name for name in after if after[name] != before[name]} == set(halves)
    for file in halves:
        assert len(after[file]) == len(before[file])
        old, new = ({k: t.view() for k, t in read_safetensors(d / file).items()} for d in (directory, tmp_path / "out"))
        for key, x in old.items():
            expected = x
            if key.startswith("vision_model."):
                expected = (x.astype(np.float32) * np.float32(1.25) + np.float32(0.125)).astype(x.dtype)
            assert new[key].dtype == x.dtype and new[key].tobytes() == expected.tobytes(), key
    again = siglip_jax.read_checkpoint(tmp_path / "out")
    assert again.config == module.config


@pytest.mark.slow
@pytest.mark.parametrize("family", ["paligemma", "janus", "phi4_multimodal"])
def test_the_owning_class_computes_with_the_new_tower(family, tmp_path):
    torch = pytest.importorskip("torch", reason="torch has no CPU build here")
    model, _ = larger_models.build(family)
    model.save_pretrained(tmp_path / "in", max_shard_size="20KB")
    module, params = SiglipVisionModel.from_pretrained(tmp_path / "in")
    random = np.random.RandomState(3)
    changed = jax.tree.map(lambda x: x + 0.1 * random.standard_normal(x.shape).astype(np.float32), params)
    write_tower(tmp_path / "in", changed, tmp_path / "out")
    again, info = type(model).from_pretrained(tmp_path / "out", output_loading_info=True, attn_implementation="eager")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tower = again.get_submodule(larger_models.FAMILIES[family][2])
    pixels = random.standard_normal((1, 28, 28, 3)).astype(np.float32)
    with torch.no_grad():
        expected = tower(torch.tensor(pixels.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
    found = jax.jit(lambda p, x: module.apply({"params": p}, x).last_hidden_state)(changed, pixels)
    assert np.abs(np.asarray(found) - expected).max() <= 1e-5 * np.abs(expected).max()
    state, old = again.state_dict(), model.state_dict()
    where = larger_models.FAMILIES[family][2]
    assert all(torch.equal(x, old[key]) for key, x in state.items() if not key.startswith(where))


def test_the_tower_of_a_whole_model(tmp_path):
    directory = cases.make_checkpoint(tmp_path, "giant_like")
    _, whole = SiglipModel.from_pretrained(directory)
    tower = {"vision_model": jax.tree.map(lambda x: x + 1, whole["vision_model"])}
    write_tower(directory, tower, tmp_path / "out")
    _, again = SiglipModel.from_pretrained(tmp_path / "out")
    expected = flatten(whole | tower)
    assert all(np.array_equal(x, expected[path]) for path, x in flatten(again).items())
    with pytest.raises(ValueError, match="unexpected .*text_model"):
        write_tower(directory, whole, tmp_path / "other")


def replaced(params, path, value):
    return unflatten(flatten(params) | {path: value})


NORM = "vision_model/post_layernorm/bias"


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path):
    directory = make(tmp_path / "in", dtype=np.float16)
    _, params = load(directory)
    out = tmp_path / "out"
    without = unflatten({path: x for path, x in flatten(params).items() if path != NORM})
    wrong_ones = [
        (without, f"1 missing .{NORM}."),
        (replaced(params, NORM, jnp.ones(23)), rf"{NORM} must be \(24,\), got \(23,\)"),
        (replaced(params, "vision_model/head/probe", jnp.ones((1, 1, 24))), "1 unexpected .vision_model/head/probe."),
        (replaced(params, NORM, np.ones(24, np.int32)), "params must be floats, got int32 for vision_model.post_l"),
        (
            replaced(params, NORM, jnp.full(24, 1e5)),
            "vision_model.post_layernorm.bias must have values that float16 of the file can hold, got up to 1e.05",
        ),
        ({"params": params}, r"pass variables\['params'\]"),
    ]
    for wrong, words in wrong_ones:
        with pytest.raises(ValueError, match=words) as caught:
            write_tower(directory, wrong, out)
        assert "\n" not in str(caught.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    with pytest.raises(ValueError, match="out must be outside of the directory"):
        write_tower(directory, params, directory / "out")
    with pytest.raises(FileNotFoundError, match="google/paligemma: no such directory; pass a local one with all files"):
        write_tower("google/paligemma", params, out)
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(FileExistsError):
        write_tower(directory, params, out)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_not_finite_values_are_written_as_they_are(tmp_path):
    directory = make(tmp_path / "in", dtype=np.float16)
    _, params = load(directory)
    write_tower(directory, replaced(params, NORM, jnp.full(24, jnp.nan)), tmp_path / "out")
    again = siglip_jax.read_checkpoint(tmp_path / "out").params
    assert np.isnan(again["vision_model"]["post_layernorm"]["bias"]).all()


def test_links_out_of_the_directory_are_refused(tmp_path):
    directory = make(tmp_path / "in")
    _, params = load(directory)
    (tmp_path / "secret").write_text("x")
    (directory / "assets" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="link: the file must be in this directory, got a link out of it"):
        write_tower(directory, params, tmp_path / "out")
    (directory / "assets" / "link").unlink()
    (directory / "linked").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="linked: the folder must be in the model's, got a link"):
        write_tower(directory, params, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_shard_is_named(tmp_path):
    directory = make(tmp_path / "in")
    _, params = load(directory)
    path = directory / "model.safetensors"
    index = {"weight_map": dict.fromkeys(safetensors.numpy.load_file(path), "model-00001-of-00002.safetensors")}
    index["weight_map"]["language_model.lm_head.weight"] = "model-00002-of-00002.safetensors"
    path.rename(directory / "model-00001-of-00002.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    siglip_jax.read_checkpoint(directory)  # the tower is there
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002.safetensors: no such file; the index"):
        write_tower(directory, params, tmp_path / "out")
