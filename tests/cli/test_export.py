"""`siglip-jax export`: what it writes and prints, and mistakes."""

import json

import numpy as np
import pytest

from siglip_jax import SiglipProcessor, load
from siglip_jax.inference.export import read_encoder


def test_export(run, checkpoint, tmp_path):
    ran = run("export", "--model", checkpoint, "--out", tmp_path / "deeper" / "x", "--dtype", "bfloat16", "--json")
    assert (ran.status, ran.err) == (0, "")
    manifest = json.loads(ran.out)
    assert manifest == json.loads((tmp_path / "deeper" / "x" / "manifest.json").read_text())
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"] and manifest["dtype"] == "bfloat16"
    ids = SiglipProcessor.from_pretrained(tmp_path / "deeper" / "x")(text=["a cat", "two dogs"])["input_ids"]
    found = read_encoder(tmp_path / "deeper" / "x", "text")(ids)
    expected = load(checkpoint, dtype="bfloat16").encode_text(["a cat", "two dogs"])
    np.testing.assert_allclose(found, expected, atol=1e-6)

    ran = run("export", "--model", checkpoint, "--out", tmp_path / "y", "--platforms", "cpu", "rocm")
    assert ran.status == 0
    image, text, last = ran.out.splitlines()
    assert image.startswith("image: batch x 32 x 32 x 3 float32 -> 32, ")
    assert text.startswith("text: batch x 64 int32 -> 32, ")
    assert last.startswith(f"{tmp_path / 'y'}: float32 for cpu, rocm; jax ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", "."), "expected no such file or directory yet, found one; name another"),
        (("--out", "x", "--platforms", "gpu"), "invalid choice: 'gpu'"),
        (("--out", "x", "--model", "nowhere"), "nowhere"),
        ((), "--out"),
    ],
)
def test_mistakes_are_told_in_one_line(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    ran = run("export", *arguments)
    assert ran.status == 2 and words in ran.err and ran.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
