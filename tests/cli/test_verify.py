"""`siglip-jax verify`: what it finds in checkpoints that are whole, and in some that are not."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import siglip_jax
from siglip_jax.checkpoints.verify import verify_tokens
from siglip_jax.configs.variants import find


def change(checkpoint, tmp_path, **tensors):
    """Copies a checkpoint with some of its tensors replaced; a dot in a name is written as two underscores."""
    path = tmp_path / "changed"
    siglip_jax.write_checkpoint(path, siglip_jax.read_checkpoint(checkpoint))
    stored = safetensors.numpy.load_file(path / "model.safetensors")
    for name, make in tensors.items():
        key = name.replace("__", ".")
        stored[key] = make(stored[key])
    safetensors.numpy.save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.slow
@pytest.mark.parametrize("format", ["huggingface", "big_vision", "open_clip", "orbax"])
def test_whole_checkpoints_of_every_format(run, checkpoint, tmp_path, format):
    path = tmp_path / ("x.npz" if format == "big_vision" else "x")
    siglip_jax.write_checkpoint(path, siglip_jax.read_checkpoint(checkpoint), format)
    ran = run("verify", path)
    assert ran.status == 0 and "WRONG" not in ran.out and ran.out.endswith(f"{path}: all right\n")
    assert json.loads(run("verify", path, "--json").out)["format"] == format


def test_a_directory_of_embeddings_is_verified_whole(run, tmp_path):
    (tmp_path / "texts.txt").write_text("a cat\na dog\n")
    out = tmp_path / "out"
    assert run("embed", tmp_path / "texts.txt", "--out", out).status == 0
    ran = run("verify", out)
    assert (ran.status, ran.out) == (0, f"{out}: all right\n")
    ids = out / "part-000000.ids.json"
    ids.write_text(json.dumps(json.loads(ids.read_text())[::-1]))
    ran = run("verify", out)
    assert ran.status == 1
    assert ran.out.startswith(f"WRONG  {ids}: the SHA-256 must be") and ran.out.endswith(f"\n{out}: not right\n")
    facts = json.loads(run("verify", out, "--json").out)
    assert (facts["right"], len(facts["faults"])) == (False, 1)
    assert run("verify", out, "--image", "x.png").status == 2


def test_the_tokenizer_is_looked_at(run, checkpoint):
    facts = json.loads(run("verify", checkpoint, "--json").out)
    assert facts["right"] and facts["same_shapes_as"] is None
    assert any(check["name"] == "tokenizer" and "SiglipTokenizer" in check["found"] for check in facts["checks"])


def poisoned(value, dtype=np.float32):
    def make(x):
        x = x.astype(dtype)
        x.reshape(-1)[-1] = value
        return x

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tensors", "name", "found"),
    [
        ({"text_model__head__weight": poisoned(np.nan)}, "every value finite", "text_model/head/kernel"),
        (
            {"vision_model__head__probe": poisoned(np.inf, ml_dtypes.bfloat16)},
            "every value finite",
            "vision_model/head/probe",
        ),
        ({"text_model__head__weight": np.zeros_like}, "no matrix of one value", "text_model/head/kernel"),
        ({"logit_scale": lambda x: x + 10}, "temperature and bias of a trained model", "temperature"),
    ],
    ids=["nan", "infinity", "zeros", "temperature"],
)
def test_what_is_wrong_is_named(run, checkpoint, tmp_path, tensors, name, found):
    path = change(checkpoint, tmp_path, **tensors)
    ran = run("verify", path, "--json")
    assert ran.status == 1
    wrong = [check for check in json.loads(ran.out)["checks"] if not check["right"]]
    assert [check["name"] for check in wrong] == [name] and found in wrong[0]["found"]
    assert f"WRONG  {name}" in run("verify", path).out


def test_missing_tensors_are_a_mistake_told_in_one_line(run, checkpoint, tmp_path):
    path = change(checkpoint, tmp_path)
    stored = safetensors.numpy.load_file(path / "model.safetensors")
    del stored["vision_model.post_layernorm.bias"]
    safetensors.numpy.save_file(stored, path / "model.safetensors")
    ran = run("verify", path)
    assert ran.status == 2 and "1 missing (vision_model.post_layernorm.bias)" in ran.err


def test_token_ids():
    published = dict(find("siglip-base-patch16-224").token_ids)
    assert len(published) == 6
    assert all(check.right for check in verify_tokens(published.__getitem__, published))
    changed = published | {"Zürich": (262, 761, 1)}
    wrong = [check.name for check in verify_tokens(changed.__getitem__, published) if not check.right]
    assert wrong == ["token ids of 'Zürich'"]
