"""`siglip-jax explain` and `diagnose`: their output, which equals that of the library, and mistakes."""

import json

import numpy as np
import pytest

from siglip_jax import explain
from siglip_jax.inference import diagnose

pytestmark = pytest.mark.slow


def test_json_is_what_the_library_says(run, checkpoint, shared_siglip, images):
    ran = run("explain", images / "a.jpg", "a cat", "two dogs", "--model", checkpoint, "--window", 2, "--json")
    assert (ran.status, ran.err) == (0, "")
    found, expected = json.loads(ran.out), explain(images / "a.jpg", ["a cat", "two dogs"], shared_siglip, window=2)
    assert found["image"] == str(images / "a.jpg") and found["texts"] == ["a cat", "two dogs"]
    for name in ("attention", "value", "raw", "occlusion", "similarity", "scores"):
        np.testing.assert_allclose(found[name], getattr(expected, name), atol=1e-6)
    np.testing.assert_allclose(found["centres"], expected.centres(), atol=1e-4)


def test_a_table_of_places_and_a_plot(run, checkpoint, shared_siglip, images, tmp_path):
    options = ("--model", checkpoint, "--no-occlusion", "--save-plot", tmp_path / "maps.png")
    ran = run("explain", images / "a.jpg", "a cat", *options)
    assert (ran.status, ran.err) == (0, "")
    header, row, caption = ran.out.splitlines()
    assert header.split() == ["text", "probability", "cosine", "x", "y"]
    expected = explain(images / "a.jpg", "a cat", shared_siglip, occlusion=False, method="value")
    y, x = expected.centres()[0]
    assert row.split()[-2:] == [f"{x:.0%}", f"{y:.0%}"] and row.startswith("a cat")
    assert caption.endswith("value, 4 x 4 patches")
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")


def test_diagnose_prints_layers_and_findings(run, checkpoint, shared_siglip, images, tmp_path):
    ran = run("diagnose", checkpoint, "--images", images, "--save-plot", tmp_path / "plot.png")
    assert ran.status == 0 and "left out" in ran.err
    expected = diagnose(shared_siglip, [images / name for name in ("a.jpg", "b.png", "c.png")])
    lines = ran.out.splitlines()
    assert lines[1].split()[0] == "embeddings" and lines[3].split()[0] == "2"
    assert lines[5:] == list(expected.findings)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(run("diagnose", checkpoint, "--images", images, "--json").out)
    assert found["images"] == 3 and found["model"] == str(checkpoint)
    np.testing.assert_allclose(found["attention"], expected.attention, rtol=1e-5)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["explain", "no.png", "a cat"], "no.png"),
        (["explain", "a.png"], "the following arguments are required: TEXT"),
        (["explain", "a.png", "x", "--no-occlusion", "--method", "occlusion"], "--method must be one that is computed"),
        (["explain", "a.png", "x", "--save-plot", "x.txt"], "the ending of a plot must be one of"),
        (["diagnose", "--images", "nowhere"], "--images must be a folder of images, got no such folder"),
        (["diagnose", "no/such/model"], "no/such/model"),
    ],
)
def test_mistakes_are_one_line(run, argv, said):
    ran = run(*argv)
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err and ran.err.count("\n") == 1
