"""`siglip-jax bench`: its output, and mistakes."""

import json

import pytest

QUICK = ("--seconds", "0.001", "--batch-sizes", "1", "1")  # the same size, measured once


@pytest.mark.slow
def test_json_has_the_measurements(run, checkpoint):
    ran = run("bench", "--model", checkpoint, *QUICK, "--json")
    assert (ran.status, ran.err) == (0, "")
    facts = json.loads(ran.out)
    assert facts.keys() == {
        "model",
        "dtype",
        "quantization",
        "load_seconds",
        "first_embedding_seconds",
        "speed",
        "peak_bytes",
        "versions",
    }
    assert 0 < facts["load_seconds"] < facts["first_embedding_seconds"]
    found = [(speed["what"], speed["batch_size"]) for speed in facts["speed"]]
    assert found == [("image preparation", 16), ("images", 1), ("texts", 1)]
    for speed in facts["speed"]:
        assert speed["per_second"] == pytest.approx(speed["batch_size"] / speed["seconds"])
    assert facts["peak_bytes"]["host"] > 10**7
    assert facts["versions"]["jax"] and facts["versions"]["devices"]


@pytest.mark.slow
def test_table(run, checkpoint):
    ran = run("bench", "--model", checkpoint, *QUICK, "--dtype", "bfloat16")
    assert (ran.status, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0].split("  ", 1)[1].strip() == f"{checkpoint}, bfloat16"
    start = next(i for i, line in enumerate(lines) if line.startswith("what"))
    assert [line.split()[:2] for line in lines[start + 1 :]] == [
        ["image", "preparation"],
        ["images", "1"],
        ["texts", "1"],
    ]
    assert "MiB host" in ran.out


@pytest.mark.slow
def test_quantized(run, checkpoint):
    ran = run("bench", "--model", checkpoint, *QUICK, "--quantization", "int4", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert json.loads(ran.out)["quantization"] == "int4"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--batch-sizes", "0"), ["whole number", "'0'"]),
        (("--seconds", "0"), ["seconds", "above 0", "'0'"]),
        (("--seconds", "soon"), ["seconds", "'soon'"]),
        (("--seconds", "inf"), ["seconds", "'inf'"]),
        (("--dtype", "int7"), ["int7", "float32"]),
        (("--model", "nowhere/at-all/really"), ["nowhere/at-all/really"]),
    ],
)
def test_mistakes_are_one_line(run, argv, said):
    ran = run("bench", *argv)
    assert (ran.status, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1
    for words in said:
        assert words in ran.err
