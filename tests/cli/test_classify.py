"""`siglip-jax classify`: its output, which equals that of the engine."""

import json
import os

import PIL.Image
import pytest

from siglip_jax.cli._output import bar, blocks, percent, shown
from siglip_jax.cli.classify import _lines
from siglip_jax.inference import load
from tests.support.tiny_checkpoint import write_classifier

LABELS = ["a cat", "two dogs", "a house"]


@pytest.mark.slow
def test_json_is_what_the_engine_says(run, checkpoint, images):
    ran = run("classify", images / "b.png", images, "--labels", *LABELS, "--model", checkpoint, "--json")
    assert ran.status == 0
    found = json.loads(ran.out)
    files = [str(images / name) for name in ("b.png", "a.jpg", "b.png", "c.png")]
    assert [entry["image"] for entry in found] == files
    expected = load(checkpoint).classify(files, LABELS)
    for entry, scores in zip(found, expected, strict=True):
        assert set(entry) == {"image", "scores"}
        assert [e["label"] for e in entry["scores"]] == [e["label"] for e in scores]
        assert [e["score"] for e in entry["scores"]] == pytest.approx([e["score"] for e in scores], abs=1e-6)
    said = "2 files are left out: 1 not images ('notes.txt'), 1 hidden ('.hidden.png')"
    assert ran.err == f"siglip-jax: {images}: {said}\n"


@pytest.mark.slow
def test_plain_bars_without_a_terminal(run, checkpoint, images):
    ran = run("classify", images / "a.jpg", images / "b.png", "--labels", *LABELS, "--model", checkpoint)
    assert ran.status == 0
    assert ran.err == ""
    assert "\x1b" not in ran.out
    blocks = [block.splitlines() for block in ran.out.split("\n\n")]
    assert [block[0] for block in blocks] == [str(images / "a.jpg"), str(images / "b.png")]
    for block, name in zip(blocks, ("a.jpg", "b.png"), strict=True):
        ranked = load(checkpoint).classify(images / name, LABELS)
        assert len(block) == 1 + len(LABELS)
        for line, entry in zip(block[1:], ranked, strict=True):
            assert line.strip().startswith(entry["label"])
            assert line.endswith(percent(entry["score"]))
            assert "█" in line


@pytest.mark.slow
def test_colour_on_a_terminal(run_on_terminal, checkpoint, images):
    long = "a label [red]that[/red] is much too long for sixty columns of text, really"
    options = ("--labels", "a cat", long, "--model", checkpoint)
    ran = run_on_terminal("classify", images / "a.jpg", *options, columns=60)
    assert ran.status == 0
    assert "\x1b[36m" in ran.out
    assert "[red]" in ran.out
    plain = [line for line in ran.out.splitlines() if "%" in line]
    for style in ("\x1b[36m", "\x1b[1m", "\x1b[0m"):
        plain = [line.replace(style, "") for line in plain]
    assert len(plain) == 2
    assert all(len(line) <= 60 for line in plain)


@pytest.mark.slow
def test_labels_from_a_file_template_and_top_k(run, checkpoint, images, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_bytes("\ufeffcat\r\n\r\n  two dogs \nhouse\n".encode())
    options = ("--labels-from", labels, "--template", "a photo of {}!", "--top-k", 2, "--model", checkpoint)
    ran = run("classify", images / "a.jpg", *options, "--json")
    (entry,) = json.loads(ran.out)
    names = ["cat", "two dogs", "house"]
    expected = load(checkpoint).classify(images / "a.jpg", names, hypothesis_template="a photo of {}!", top_k=2)
    assert [e["label"] for e in entry["scores"]] == [e["label"] for e in expected]
    assert [e["score"] for e in entry["scores"]] == pytest.approx([e["score"] for e in expected], abs=1e-6)


@pytest.mark.slow
def test_folders_within_folders(run, checkpoint, images):
    options = ("--labels", "a cat", "--model", checkpoint, "--json")
    assert len(json.loads(run("classify", images, *options).out)) == 3
    deep = json.loads(run("classify", images, "--recursive", *options).out)
    assert [os.path.relpath(entry["image"], images) for entry in deep] == ["a.jpg", "b.png", "c.png", "deeper/d.PNG"]


@pytest.mark.slow
def test_the_others_are_done(run, checkpoint, images, tmp_path):
    """One line for each unusable image, results for the others, and exit status 2."""
    (images / "aa.png").write_bytes(b"no image")
    options = ("--labels", "a cat", "--model", checkpoint, "--json")
    ran = run("classify", tmp_path / "missing.png", images, *options)
    assert ran.status == 2
    assert [os.path.basename(entry["image"]) for entry in json.loads(ran.out)] == ["a.jpg", "b.png", "c.png"]
    missing, skipped, broken = ran.err.splitlines()
    assert "missing.png" in missing
    assert "not images" in skipped
    assert "aa.png" in broken


@pytest.mark.slow
def test_save_plot(run, checkpoint, images, tmp_path):
    pytest.importorskip("matplotlib")
    (images / "aa.png").write_bytes(b"no image")
    plot = tmp_path / "plot.png"
    ran = run("classify", images, "--labels", *LABELS, "--model", checkpoint, "--save-plot", plot)
    assert ran.status == 2  # one image is unreadable; the plot shows the others
    with PIL.Image.open(plot) as drawn:
        assert drawn.format == "PNG"
        assert drawn.height > 200
    assert ".plot.png" not in " ".join(os.listdir(tmp_path))


@pytest.mark.parametrize(
    ("share", "drawn"), [(0.0, ""), (1.0, "█" * 8), (0.5, "█" * 4), (1 / 64, "▏"), (0.99, "█" * 7 + "▉"), (1e-9, "")]
)
def test_bar(share, drawn):
    assert bar(share, 8) == drawn


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "100.0 %"),
        (0.1234, "12.3 %"),
        (0.001, "0.1 %"),
        (0.00012345, "0.012 %"),
        (1e-9, "1e-07 %"),
        (0.0, "0.0 %"),
    ],
)
def test_percent(share, text):
    assert percent(share) == text


def test_terminals_that_know_only_ascii():
    assert not blocks("ascii")
    result = {"image": "caf\u00e9.png", "scores": [{"label": "\u732b", "score": 0.5}]}
    drawn = ["".join(parts) for parts in _lines([result], 6, 10, "ascii")]
    assert drawn == ["caf\\xe9.png", "  \\u732b  #####         50.0 %"]


def test_names_cannot_steer_the_terminal():
    assert shown("a\x1b[31m\nb\udcff\u732b", "utf-8") == "a\\x1b[31m\\nb\\udcff\u732b"


@pytest.mark.slow
def test_a_label_that_is_not_utf_8(run, checkpoint, images):
    ran = run("classify", images / "b.png", "--labels", "caf\udce9", "a cat", "--model", checkpoint)
    assert ran.status == 0
    assert ran.err == ""
    assert "caf\\udce9" in ran.out


@pytest.mark.slow
def test_a_classifier_ranks_its_own_labels(run, checkpoint, images, tmp_path):
    trained = write_classifier(checkpoint, tmp_path / "classifier", id2label={0: "cat", 1: "dog", 2: "house"})
    ran = run("classify", images / "a.jpg", images / "b.png", "--model", trained, "--json", "--top-k", "2")
    assert ran.status == 0 and ran.err == ""
    expected = load(trained).classify([images / "a.jpg", images / "b.png"], top_k=2)
    for entry, scores in zip(json.loads(ran.out), expected, strict=True):
        assert [e["label"] for e in entry["scores"]] == [e["label"] for e in scores]
        assert [e["score"] for e in entry["scores"]] == pytest.approx([e["score"] for e in scores], abs=1e-6)
    plot = tmp_path / "plot.png"
    assert run("classify", images / "a.jpg", "--model", trained, "--save-plot", plot).status == 0
    with PIL.Image.open(plot) as drawn:
        assert drawn.format == "PNG"
    for arguments, said in (
        (("--model", trained, "--template", "a {}"), "--template must be left out for a classifier"),
        (("--model", checkpoint), "labels must not be empty, got none; add --labels"),
        (("--model", "google/siglip-base-patch16-224"), "labels must not be empty"),  # and nothing is fetched
    ):
        ran = run("classify", images / "a.jpg", *arguments)
        assert ran.status == 2 and said in ran.err
