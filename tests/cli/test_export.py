"""`siglip-jax export`: what it writes and prints, and mistakes."""

import json

import pytest


@pytest.mark.slow
def test_export(run, checkpoint, tmp_path):
    ran = run("export", "--model", checkpoint, "--out", tmp_path / "deeper" / "x", "--dtype", "bfloat16", "--json")
    assert (ran.status, ran.err) == (0, "")
    manifest = json.loads(ran.out)
    assert manifest == json.loads((tmp_path / "deeper" / "x" / "manifest.json").read_text())
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"] and manifest["dtype"] == "bfloat16"
    ran = run("export", "--model", checkpoint, "--out", tmp_path / "y", "--platforms", "cpu", "rocm")
    assert ran.status == 0
    image, text, last, promise = ran.out.splitlines()
    assert promise == manifest["promise"]
    assert image.startswith("image: batch x 32 x 32 x 3 float32 -> 32, ")
    assert text.startswith("text: batch x 64 int32 -> 32, ")
    assert last.startswith(f"{tmp_path / 'y'}: float32 for cpu, rocm; jax ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", "."), "the destination must not exist yet, got an existing one; choose another"),
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
