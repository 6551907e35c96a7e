"""Mistakes on the command line: status 2, one line on stderr, and no traceback.

Each case lists words of the line: what must hold, what was found, what to do.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from siglip_jax import __version__
from siglip_jax.cli import _main as main
from siglip_jax.cli import classify


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be damaged."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def change_config(directory: Path, change: Callable[[dict], None]) -> None:
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))


def change_tensors(directory: Path, change: Callable[[dict], None]) -> None:
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


DAMAGE = {
    "no config.json": (lambda d: (d / "config.json").unlink(), ["config.json", "no such file"]),
    "no weights": (
        lambda d: (d / "model.safetensors").unlink(),
        ["the directory must hold", "model.safetensors", "got none of them"],
    ),
    "no vocabulary": (lambda d: (d / "spiece.model").unlink(), ["spiece.model"]),
    "no image processor": (lambda d: (d / "preprocessor_config.json").unlink(), ["preprocessor_config.json"]),
    "only tokenizer.json": (
        lambda d: (d / "spiece.model").rename(d / "tokenizer.json"),
        ["tokenizer.json: file must be a tokenizer of", "got other contents"],
    ),
    "corrupt vocabulary": (lambda d: (d / "spiece.model").write_bytes(b"not a model"), ["spiece.model"]),
    "config is no JSON": (
        lambda d: (d / "config.json").write_text("{,"),
        ["config.json: the file must hold a JSON object", "got invalid JSON"],
    ),
    "config is a list": (
        lambda d: (d / "config.json").write_text("[]"),
        ["config.json: the file must hold a JSON object", "got a list"],
    ),
    "clip": (
        lambda d: change_config(d, lambda c: c.update(model_type="clip")),
        ["model_type must be 'siglip'", "got 'clip'"],
    ),
    "bert": (
        lambda d: change_config(d, lambda c: c.update(model_type="bert")),
        ["model_type must be 'siglip'", "got 'bert'"],
    ),
    "siglip2": (
        lambda d: change_config(d, lambda c: c.update(model_type="siglip2")),
        ["model_type must be 'siglip2_text_model'", "got 'siglip_text_model'", "SiglipTextConfig"],
    ),
    "truncated weights": (lambda d: cut(d / "model.safetensors", 50_000), ["model.safetensors", "truncated"]),
    "truncated header": (lambda d: cut(d / "model.safetensors", 100), ["model.safetensors: the file must be", "got a"]),
    "empty weights": (lambda d: cut(d / "model.safetensors", 0), ["model.safetensors: the file must be", "got a"]),
    "corrupt weights": (
        lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 4096),
        ["model.safetensors: the file must be", "got a truncated or corrupt one"],
    ),
    "another width": (
        lambda d: change_config(d, lambda c: c["vision_config"].update(intermediate_size=96)),
        ["must hold the parameters of the configuration", "of the wrong shape", "fc1", "96", "64"],
    ),
    "impossible heads": (
        lambda d: change_config(d, lambda c: c["vision_config"].update(num_attention_heads=5)),
        ["divisible", "32", "5"],
    ),
    "a tower that is a list": (
        lambda d: change_config(d, lambda c: c.update(text_config=[1])),
        ["text_config must be a SiglipTextConfig or a dict", "got list"],
    ),
    "missing tensor": (
        lambda d: change_tensors(d, lambda t: t.pop("text_model.final_layer_norm.bias")),
        ["missing", "text_model.final_layer_norm.bias"],
    ),
    "unexpected tensor": (
        lambda d: change_tensors(d, lambda t: t.update({"text_model.surprise": np.zeros(1, np.float32)})),
        ["unexpected", "text_model.surprise"],
    ),
    "whole numbers for weights": (
        lambda d: change_tensors(d, lambda t: t.update(logit_bias=np.zeros(1, np.int32))),
        ["dtypes must be among", "got logit_bias: int32"],
    ),
}


def one_line(ran) -> str:
    assert ran.status == 2
    assert ran.out == ""
    assert ran.err.startswith("siglip-jax: ")
    assert ran.err.count("\n") == 1
    assert ran.err.endswith("\n")
    assert len(ran.err) < 800
    return ran.err


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_checkpoints(run, copy, images, name):
    damage, words = DAMAGE[name]
    damage(copy)
    line = one_line(run("classify", images / "a.jpg", "--labels", "a cat", "--model", copy))
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", ["nowhere", "no such file or directory"]),
        ("./nowhere/else", ["no such file or directory"]),
        ("owner/not-a-model-of-the-hub", ["owner/not-a-model-of-the-hub", "Hub"]),
    ],
)
def test_models_that_are_not_there(run, images, name, words):
    for line in (
        one_line(run("classify", images / "a.jpg", "--labels", "a cat", "--model", name)),
        one_line(run("info", name)),
    ):
        for word in words:
            assert word in line


MISTAKES = {
    "no command": ([], ["the command must be one of", "classify", "got none", "--help"]),
    "unknown command": (["frobnicate"], ["frobnicate", "choose from", "--help"]),
    "unknown option": (["classify", "IMAGE", "--labels", "a", "--frobnicate"], ["--frobnicate", "--help"]),
    "abbreviated option": (["classify", "IMAGE", "--label", "a"], ["--label", "--help"]),
    "no images": (["classify", "--labels", "a cat"], ["images must not be empty, got none", "before --labels"]),
    "image after the labels": (
        ["classify", "--labels", "a cat", "IMAGE"],
        ["images must not be empty, got none", "before --labels"],
    ),
    "no labels": (["classify", "IMAGE"], ["labels must not be empty, got none", "--labels-from"]),
    "no value for labels": (["classify", "IMAGE", "--labels"], ["--labels", "expected at least one"]),
    "blank label": (["classify", "IMAGE", "--labels", "a", " "], ["must not be blank", "position 1"]),
    "no such labels file": (
        ["classify", "IMAGE", "--labels-from", "TMP/no.txt"],
        ["no.txt: no such file; pass a text file of labels"],
    ),
    "empty labels file": (
        ["classify", "IMAGE", "--labels-from", "TMP/empty.txt"],
        ["empty.txt", "the file must hold labels, one per line, got an empty file"],
    ),
    "labels not in UTF-8": (
        ["classify", "IMAGE", "--labels-from", "TMP/latin.txt"],
        ["latin.txt: labels must be text in UTF-8"],
    ),
    "labels file is a folder": (["classify", "IMAGE", "--labels-from", "TMP"], ["pass a text file of labels"]),
    "template without a place": (
        ["classify", "IMAGE", "--labels", "a", "--template", "a photo"],
        ["must have {}", "got 'a photo'", "write"],
    ),
    "top-k zero": (["classify", "IMAGE", "--labels", "a", "--top-k", "0"], ["--top-k", "at least 1", "got '0'"]),
    "top-k word": (["classify", "IMAGE", "--labels", "a", "--top-k", "x"], ["--top-k", "whole number", "got 'x'"]),
    "batch size negative": (["classify", "IMAGE", "--labels", "a", "--batch-size=-3"], ["--batch-size", "got '-3'"]),
    "batch size fraction": (["classify", "IMAGE", "--labels", "a", "--batch-size", "1.5"], ["--batch-size", "'1.5'"]),
    "missing image": (
        ["classify", "TMP/no.png", "--labels", "a"],
        ["no.png", "must be an image or a folder, got no such file", "check"],
    ),
    "image that is none": (["classify", "TMP/empty.txt", "--labels", "a"], ["empty.txt"]),
    "text for an image": (["classify", "TMP/latin.txt", "--labels", "a"], ["latin.txt"]),
    "truncated image": (["classify", "TMP/cut.jpg", "--labels", "a"], ["cut.jpg"]),
    "folder without images": (
        ["classify", "TMP/bare", "--labels", "a"],
        ["bare", "must hold images, got none among 1 files"],
    ),
    "plot of unknown kind": (
        ["classify", "IMAGE", "--labels", "a", "--save-plot", "TMP/plot.xyz"],
        ["plot.xyz", "must be one of .png", "got '.xyz'"],
    ),
    "plot in no folder": (
        ["classify", "IMAGE", "--labels", "a", "--save-plot", "TMP/no/plot.png"],
        ["plot.png", "no such folder", "make it first"],
    ),
    "plot over a folder": (
        ["classify", "IMAGE", "--labels", "a", "--save-plot", "TMP/folder.png"],
        ["folder.png", "must be written to a file", "got a folder"],
    ),
    "plot of too many labels": (
        ["classify", "IMAGE", "--labels-from", "TMP/many.txt", "--save-plot", "TMP/plot.png"],
        ["1 to 128", "got 1 images and 200 labels"],
    ),
    "info of two models": (["info", "a", "b"], ["unrecognized arguments: b", "--help"]),
    "an option with a typing mistake": (
        ["classify", "IMAGE", "--lables", "a"],
        ["unrecognized arguments: --lables a (did you mean --labels?)", "siglip-jax classify --help"],
    ),
    "collection in a bucket": (
        ["embed", "IMAGE", "--out", "gs://bucket/x"],
        ["--out must be a path on this machine, got the URL gs://bucket/x"],
    ),
    "conversion into a bucket": (
        ["convert", "IMAGE", "gs://bucket/x", "--to", "orbax"],
        ["destination must be a path on this machine, got the URL gs://bucket/x"],
    ),
    "export into a bucket": (
        ["export", "--out", "s3://bucket/x"],
        ["directory must be a path on this machine, got the URL s3://bucket/x"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(run, checkpoint, images, tmp_path, name):
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "many.txt").write_text("\n".join(f"label {i}" for i in range(200)))
    (tmp_path / "cut.jpg").write_bytes((images / "a.jpg").read_bytes()[:700])
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "notes.txt").write_text("")
    before = sorted(tmp_path.rglob("*"))
    argv, words = MISTAKES[name]
    filled = [a.replace("IMAGE", str(images / "a.jpg")).replace("TMP", str(tmp_path)) for a in argv]
    model = ["--model", str(checkpoint)] if argv[:1] == ["classify"] else []
    line = one_line(run(*filled[:1], *model, *filled[1:]))
    for word in words:
        assert word in line
    assert sorted(tmp_path.rglob("*")) == before


def test_plot_without_matplotlib(run, checkpoint, images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plot = tmp_path / "plot.png"
    ran = run("classify", images / "a.jpg", "--labels", "a", "--model", checkpoint, "--save-plot", plot)
    assert re.search(r"pip install 'matplotlib>=\d[\d.]*' \(the extra 'plot'\)$", one_line(ran))


def test_plot_in_a_folder_that_is_closed(run, checkpoint, images, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == tmp_path and mode == os.W_OK))  # root may all
    plot = tmp_path / "plot.png"
    ran = run("classify", images / "a.jpg", "--labels", "a", "--model", checkpoint, "--save-plot", plot)
    assert f"the folder of the plot must be writable, got {tmp_path}, which is not; choose another" in one_line(ran)


@pytest.mark.slow
def test_plot_on_a_full_disk(run, checkpoint, images, tmp_path, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "plot.png"))

    monkeypatch.setattr("siglip_jax.plots.heatmap.write_atomically", full)
    plot = tmp_path / "plot.png"
    ran = run("classify", images / "a.jpg", "--labels", "a", "--model", checkpoint, "--save-plot", plot)
    assert ran.status == 2
    assert ran.err == f"siglip-jax: {plot}: No space left on device\n"


def test_interrupted(run, images, monkeypatch):
    def interrupt(arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(classify, "read_labels", interrupt)
    ran = run("classify", images / "a.jpg", "--labels", "a")
    assert (ran.status, ran.err) == (130, "siglip-jax: interrupted\n")


@pytest.mark.parametrize("argv", [["--help"], ["classify", "--help"], ["info", "--help"]])
def test_help(run, argv):
    ran = run(*argv)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("usage: siglip-jax")


def test_version(run):
    assert run("--version").out == f"siglip-jax {__version__}\n"


@pytest.mark.slow
def test_a_real_process(checkpoint, images, tmp_path):
    """Status, both streams, and the absence of a traceback, as a shell sees them."""
    base = [sys.executable, "-W", "error", "-m", "siglip_jax", "classify", "--model", str(checkpoint)]
    good = subprocess.run([*base, str(images / "a.jpg"), "--labels", "a cat"], capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    assert "a cat" in good.stdout
    bad = subprocess.run([*base, str(tmp_path / "no.png"), "--labels", "a"], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_there(platform, checkpoint, images):
    argv = [sys.executable, "-m", "siglip_jax", "classify", str(images / "a.jpg"), "--labels", "a"]
    environment = {**os.environ, "JAX_PLATFORMS": platform}
    ran = subprocess.run([*argv, "--model", str(checkpoint)], env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    line = f"siglip-jax: JAX_PLATFORMS must name a platform of this machine, got {platform!r}; unset it, or install jax"
    assert ran.stderr.startswith(line) and ran.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("argv", [["--to", "huggingface"], ["--to", "big_vision"], ["--to", "orbax"]])
def test_a_full_disk_is_one_line_with_the_path(argv, tmp_path):
    """A limit on the size of files fails as a full disk does, and needs no disk; orbax asks for the space before."""
    out = tmp_path / ("out.npz" if "big_vision" in argv else "out")
    code = f"""
import collections, resource, shutil, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
shutil.disk_usage = lambda path: collections.namedtuple("Usage", "free")(100_000)
from siglip_jax.cli import main
from siglip_jax.assets import BUNDLED_MODEL
sys.exit(main(["convert", str(BUNDLED_MODEL), {str(out)!r}, *{argv!r}]))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1, ran.stderr
    assert ran.stderr.startswith(f"siglip-jax: {out}")
    assert ("File too large" in ran.stderr) != ("must have 5,919,236 bytes free, got 100,000" in ran.stderr)
    assert not out.is_file() and not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_news(checkpoint):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        argv = [sys.executable, "-m", "siglip_jax", "info", str(checkpoint)]
        ran = subprocess.run(argv, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert (ran.returncode, ran.stderr) == (141, "")


def test_commands_are_listed():
    names = [
        "bench",
        "calibrate",
        "classify",
        "convert",
        "diagnose",
        "doctor",
        "embed",
        "eval",
        "explain",
        "export",
        "info",
        "plan",
        "search",
        "train",
        "verify",
    ]
    assert list(main.COMMANDS) == names
