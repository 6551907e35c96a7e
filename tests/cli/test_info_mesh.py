"""`siglip-jax info --mesh`: the memory of a mesh, and mistakes."""

import json
import math

import pytest

from siglip_jax.configs.variants import VARIANTS
from siglip_jax.models import SiglipVisionModel

NAME = "google/siglip-so400m-patch14-384"
WITHOUT_LOSS = ("gradients", "moments", "activations", "loss")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Refuses, and reports, every connection."""
    tried: list[object] = []

    def refuse(*arguments: object, **options: object) -> None:
        tried.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    yield
    assert tried == []


def mebibytes(cell: str) -> float:
    number, unit = cell.replace(",", "").split()
    return float(number) * {"MiB": 1, "GiB": 1024}[unit]


def test_in_words(run):
    ran = run("info", NAME, "--mesh", "data=4,fsdp=2")
    assert (ran.status, ran.err) == (0, "")
    head, table = ran.out.split("\n\n")
    lines = dict(line.split("  ", 1) for line in head.splitlines())
    assert lines["model"].strip() == NAME
    assert lines["mesh"].strip() == "data=4 x fsdp=2 x tensor=1, 8 devices"
    assert lines["batch"].strip() == "256 image-text pairs, 32 on a device, the default of --batch-size"
    assert lines["compute"].strip() == "float32, no remat"
    header, *rows, _, _ = table.splitlines()
    assert header.split("  ")[0] == "on each device"
    rows = {row[:16].strip(): [cell.strip() for cell in (row[16:30], row[30:])] for row in rows}
    parameters = 4 * 877_960_498 / 2 / 2**20
    for cell in rows["parameters"]:
        assert mebibytes(cell) == pytest.approx(parameters, rel=0.01)
    assert mebibytes(rows["Adam moments"][1]) == pytest.approx(2 * parameters, rel=0.01)
    assert rows["gradients"][0] == rows["loss"][0] == "-"
    for column in (0, 1):
        cells = [mebibytes(row[column]) for name, row in rows.items() if name != "total" and row[column] != "-"]
        assert mebibytes(rows["total"][column]) == pytest.approx(sum(cells), rel=0.01)
    assert "\x1b" not in ran.out


def test_json(run):
    ran = run("info", NAME, "--mesh", "data=4,fsdp=2", "--json")
    assert (ran.status, ran.err) == (0, "")
    facts = json.loads(ran.out)
    assert facts["model"] == NAME
    assert facts["mesh"] == {"data": 4, "fsdp": 2, "tensor": 1}
    assert (facts["devices"], facts["batch"], facts["remat"], facts["dtype"]) == (8, 256, None, "float32")
    assert sum(math.prod(row["shape"]) for row in facts["table"]) == 877_960_498
    held = sum(row["bytes"] for row in facts["table"])
    for job in (facts["forward"], facts["training_step"]):
        assert job["parameters"] == held
        assert job["batch"] == 32 * 4 * (384 * 384 * 3 + 64)
        assert job["total"] == sum(size for name, size in job.items() if name != "total")
    assert [facts["forward"][name] for name in WITHOUT_LOSS] == [0] * 4
    assert facts["training_step"]["gradients"] == held
    assert facts["training_step"]["moments"] == 2 * held


def test_batch_remat_and_dtype(run):
    def step(*options: object) -> dict[str, int]:
        return json.loads(run("info", NAME, "--mesh", "data=4,fsdp=2", *options, "--json").out)["training_step"]

    plain = step()
    twice, full, half = step("--batch-size", 512), step("--remat", "full"), step("--dtype", "bfloat16")
    assert twice["activations"] == 2 * plain["activations"]
    assert twice["parameters"] == plain["parameters"]
    assert full["activations"] < plain["activations"] / 10
    assert 0.5 < half["activations"] / plain["activations"] < 0.6  # statistics of norms and softmax stay in float32
    assert half["parameters"] == plain["parameters"]


def test_table(run):
    ran = run("info", NAME, "--mesh", "fsdp=4,tensor=2", "--batch-size", 4096, "--table")
    assert (ran.status, ran.err) == (0, "")
    head, _, table = ran.out.split("\n\n")
    assert "4,096 image-text pairs, 1,024 on a device\n" in head
    header, *lines = table.splitlines()
    assert header.split() == ["parameter", "shape", "sharded", "over", "on", "each", "device"]
    assert len(lines) == 61  # of 890 parameters
    rows = {line.split("  ")[0]: line for line in lines}
    fc2 = rows["vision_model/encoder/layers_*/mlp/fc2/kernel"].split()
    assert fc2[1:] == ["x", "27", "4304", "x", "1152", "tensor,", "fsdp", "63.8", "MiB"]
    assert rows["logit_bias"].split()[1:] == ["1", "whole", "<", "0.01", "MiB"]
    assert mebibytes(" ".join(rows["total"].split()[1:])) == pytest.approx(4 * 877_960_498 / 8 / 2**20, rel=0.02)


def test_of_a_checkpoint_and_of_the_bundled_model(run, checkpoint, tmp_path):
    whole = json.loads(run("info", checkpoint, "--mesh", "data=2", "--json").out)
    assert whole["model"] == str(checkpoint)
    assert whole["batch"] == 64
    text, image = 32 * 64 * 4, 32 * 32 * 32 * 3 * 4
    assert whole["forward"]["batch"] == text + image
    model, params = SiglipVisionModel.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path, params)
    tower = json.loads(run("info", tmp_path, "--mesh", "data=2", "--json").out)
    assert tower["forward"]["batch"] == image
    assert tower["training_step"]["activations"] < whole["training_step"]["activations"]
    assert "the bundled model" in run("info", "--mesh", "tensor=2").out


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.short_name)
def test_of_every_released_checkpoint(run, variant):
    facts = json.loads(run("info", variant.short_name, "--mesh", "data=1", "--json").out)
    assert facts["model"] == variant.name
    assert facts["forward"]["parameters"] == 4 * variant.parameters


def test_on_a_narrow_terminal(run_on_terminal):
    ran = run_on_terminal("info", NAME, "--mesh", "fsdp=2", "--table", columns=40)
    assert ran.status == 0
    text = ran.out
    assert "\x1b[36m" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("text_model/embeddings/token"))
    assert row[1:] == ["32000", "x", "1152", "fsdp,", "-", "70.3", "MiB"]


MISTAKES = {
    "no number": (["--mesh", "data=x"], ["--mesh", "axes must be sizes", "got 'data=x'; write data=4,fsdp=2"]),
    "unknown axis": (["--mesh", "foo=2"], ["data, fsdp, tensor", "got 'foo=2'; write data=4,fsdp=2"]),
    "negative": (["--mesh", "data=-1"], ["at least 1", "got 'data=-1'; write data=4,fsdp=2"]),
    "zero": (["--mesh", "data=0"], ["at least 1", "got 'data=0'; write data=4,fsdp=2"]),
    "an axis twice": (["--mesh", "data=2,data=2"], ["got 'data=2,data=2'; write data=4,fsdp=2"]),
    "no axis": (["--mesh", ""], ["got ''; write data=4,fsdp=2"]),
    "batch that does not divide": (
        ["--mesh", "data=4,fsdp=2", "--batch-size", "12"],
        ["batch must be a positive multiple of", "8 devices", "got 12"],
    ),
    "batch of no pair": (["--mesh", "data=2", "--batch-size", "0"], ["--batch-size", "at least 1", "got '0'"]),
    "batch without a mesh": (
        ["--batch-size", "8"],
        ["--batch-size must be used with --mesh, got it alone", "data=4,fsdp=2"],
    ),
    "remat without a mesh": (["--remat", "full"], ["--remat must be used with --mesh"]),
    "type without a mesh": (["--dtype", "float32"], ["--dtype must be used with --mesh"]),
    "table without a mesh": (["--table"], ["--table must be used with --mesh"]),
    "unknown remat": (["--mesh", "data=2", "--remat", "dots"], ["--remat", "'dots'", "full"]),
    "mesh of the list": (["--variants", "--mesh", "data=2"], ["--mesh or --variants, got both; leave one out"]),
    "no such model": (["nowhere", "--mesh", "data=2"], ["nowhere", "no such file or directory"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(run, mistake):
    argv, words = MISTAKES[mistake]
    ran = run("info", *argv)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("siglip-jax: ")
    assert ran.err.count("\n") == 1
    for word in words:
        assert word in ran.err
