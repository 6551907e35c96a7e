"""`siglip-jax calibrate` and `classify --calibration`: what they print, their files, and their mistakes."""

import functools
import json
import shutil
import sys
from pathlib import Path

import PIL.Image
import pytest

from siglip_jax.assets import EXAMPLES
from siglip_jax.inference import Calibration, load

LABELS = (EXAMPLES / "labels.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(autouse=True, scope="module")
def loaded_once():
    """Every call of `load` with the same arguments gives the same model, so that little is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["siglip_jax.inference.load"], "load", functools.cache(load))
        yield


def class_folders(folder: Path, labels: list[str]) -> Path:
    for label in labels:
        (folder / label).mkdir(parents=True)
        shutil.copy(EXAMPLES / f"{label}.png", folder / label)
    return folder


@pytest.fixture(scope="module")
def pictograms(tmp_path_factory) -> Path:
    return class_folders(tmp_path_factory.mktemp("data") / "pictograms", LABELS)


@pytest.mark.slow
def test_fitted_saved_and_used(run, pictograms, tmp_path):
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "calibration.json", tmp_path / "reliability.png"
    ran = run("calibrate", pictograms, "--out", out, "--save-plot", plot, "--json")
    assert (ran.status, ran.err) == (0, "")
    facts, made = json.loads(ran.out), Calibration.read(out)
    assert facts["temperature"]["after"] == made.temperature and facts["threshold"] == made.threshold
    assert facts["held_out"]["after"]["ece"] < facts["held_out"]["before"]["ece"]
    assert (facts["held_out"]["after"]["ece_bins"], facts["held_out"]["after"]["ece_best_label_bins"]) == (15, 3)
    assert facts["held_out"]["examples"] == facts["fitted"]["examples"] == 32
    assert (made.labels, made.model) == (tuple(LABELS), "the bundled model")
    with PIL.Image.open(plot) as drawn:
        assert drawn.format == "PNG"

    horse = pictograms / "horse"
    ran = run("classify", horse, "--calibration", out, "--top-k", 2, "--json")
    assert (ran.status, ran.err) == (0, "")
    (entry,) = json.loads(ran.out)
    expected = load().classify(horse / "horse.png", calibration=made, top_k=2)
    assert [(e["label"], e["accepted"]) for e in entry["scores"]] == [("horse", True), ("goat", False)]
    assert [e["score"] for e in entry["scores"]] == pytest.approx([e["score"] for e in expected], rel=1e-5)

    ran = run("classify", horse, "--calibration", out, "--top-k", 2)
    _, first, second, _, caption = ran.out.splitlines()
    assert first.endswith(" % *") and second.endswith(" %")
    assert caption == "calibrated; * accepted: 76.1 % or more, the threshold for a precision of 90.0 %"


@pytest.mark.slow
def test_in_words(run, pictograms):
    ran = run("calibrate", pictograms, "--precision", "1", "--limit", "40")
    assert (ran.status, ran.err) == (0, "")
    said, table = ran.out.split("\n\n")
    assert "images               20 fitted, 20 held out\n" in said
    assert "%, for a precision of 100.0 % over pairs" in said
    rows = [line.split("  ")[0] for line in table.splitlines()[1:]]
    assert rows == [
        "ECE, all pairs, 15 equal-mass bins",
        "ECE, best label, 2 equal-mass bins",
        "log loss of a pair",
        "right labels above one half",
        "precision at the threshold",
        "recall at the threshold",
    ]


@pytest.mark.slow
def test_few_images_that_do_not_overlap_are_said_to(run, tmp_path):
    ran = run("calibrate", class_folders(tmp_path / "few", ["church", "horse", "lemon", "pizza"]))
    assert ran.status == 0
    assert ran.err.startswith(
        "siglip-jax: matching pairs and others do not overlap, so that the temperature says little"
    )
    assert ran.err.count("\n") == 1


@pytest.mark.slow
def test_mistakes(run, pictograms, tmp_path):
    damaged = tmp_path / "damaged.json"
    damaged.write_text('{"format": "x"}')
    other = tmp_path / "other.json"
    Calibration(("a",), (("a",),), 1.0, 0.0, None, 0.9, "google/x", "abc").save(other)
    horse = pictograms / "horse"
    for argv, words in (
        (("calibrate", pictograms, "--precision", "90"), "the value must be above 0 and up to 1, got '90'"),
        (("calibrate", horse), "horse"),
        (("calibrate", tmp_path / "none"), "none"),
        (("calibrate", pictograms, "--out", tmp_path / "none" / "a.json"), "a.json"),
        (("classify", horse, "--calibration", damaged), "damaged.json: format must be 'siglip-jax calibration 1'"),
        (("classify", horse, "--calibration", tmp_path / "no.json"), "no.json: no such file; a calibration is made"),
        (("classify", horse, "--calibration", other), "was fitted for, 'google/x' with fingerprint abc, got one with"),
        (("classify", horse, "--calibration", other, "--labels", "a"), "--labels must be left out with --calibration"),
        (("classify", horse, "--calibration", other, "--template", "a {}"), "--template must be left out with --cal"),
    ):
        ran = run(*argv)
        assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1), argv
        assert words in ran.err
