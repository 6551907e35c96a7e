"""Every notebook runs from top to bottom and prints what is stored in the repository."""

import base64
import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest

import siglip_jax
from siglip_jax.inference import load
from tests.support.processes import compiled_in

nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
DIGIT = 0.1  # the last printed digit may round the other way
SECONDS = 1800  # for one cell, however busy the machine is; a whole notebook takes a minute or two
# Of accuracies from 0 to 1: training amplifies small differences. Of counts: a place may lie on the edge of a box.
TOLERANCES = {"04_finetune": 0.35, "09_what_the_model_sees": 1.0}


def texts(notebook) -> list[str]:
    """Returns the text that each code cell printed."""
    return [
        "".join(output.get("text", "") for output in cell.outputs if output.output_type == "stream")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def figures(notebook) -> list[bytes]:
    """Returns the PNG images of all outputs."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


@pytest.fixture(scope="module")
def executed(notebook, tmp_path_factory):
    fresh = nbformat.from_dict(notebook)
    folder = tmp_path_factory.mktemp("elsewhere")  # a notebook must not depend on the working directory
    # A program that a notebook runs several times, as for each format of a checkpoint, is compiled once.
    cache = compiled_in(tmp_path_factory.mktemp("compiled"))
    client = nbclient.NotebookClient(
        fresh, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    client.execute(env=os.environ | cache | {"PYTHONPATH": str(Path(siglip_jax.__file__).parent.parent)})
    assert list(folder.iterdir()) == []
    return fresh


def test_committed_with_its_outputs(notebook):
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run all cells in order before committing"
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
    assert all(len(figure) < 150_000 for figure in figures(notebook))


@pytest.mark.slow
def test_runs_and_prints_the_same(request, notebook, executed):
    tolerance = TOLERANCES.get(request.node.callspec.params["notebook"].stem, DIGIT)
    assert len(figures(executed)) == len(figures(notebook)) > 0
    for found, committed in zip(texts(executed), texts(notebook), strict=True):
        assert NUMBER.sub("#", found).split() == NUMBER.sub("#", committed).split()
        numbers = [[float(number) for number in NUMBER.findall(text)] for text in (found, committed)]
        np.testing.assert_allclose(*numbers, atol=tolerance + 1e-9)


def zero_shot(everything: str):
    first, total, five, _ = map(int, re.search(r"right: (\d+) of (\d+); .* five: (\d+) of (\d+)", everything).groups())
    assert total == 64
    assert first >= 45
    assert five >= 54
    own, other = map(float, re.search(r"own label (\S+), another label (\S+)", everything).groups())
    assert own > other + 0.2
    sums = dict(re.findall(r"^(\w+ \w+ \w+|\w+ \w+) +sum of sigmoid scores (\S+),", everything, re.MULTILINE))
    assert float(sums["none fits"]) < 0.5 < float(sums["one label fits"]) < 1.5 < float(sums["two labels fit"])
    found = re.findall(r"bias ([+-]\d): +(\d+) of 64 matching pairs found, +(\d+) others", everything)
    assert [int(shift) for shift, _, _ in found] == [-4, -2, 0, 2, 4]
    assert sorted(int(n) for _, n, _ in found) == [int(n) for _, n, _ in found]
    siglip = load()
    assert f"temperature {siglip.temperature:.1f}, bias {siglip.logit_bias:.1f}" in everything


def checkpoints(everything: str):
    assert "byte for byte: True" in everything
    rows = re.findall(r"^(.+?) +(\d+) of 124 +(\S+) +(\d+) of 64$", everything, re.MULTILINE)
    table = {name: (int(equal), float(difference), int(right)) for name, equal, difference, right in rows}
    for name in ("the original", "big vision", "open clip", "orbax", "huggingface"):
        assert table[name][:2] == (124, 0)
    assert table["larger patches"][2] > table["more positions"][2] + 5  # "needs no training", "a start for fine-tuning"
    assert everything.count("156 of 156 tensors equal") == 8


def ring(everything: str):
    assert "texts of device (d − k) mod 8: True" in everything
    assert "blocks computed in each step: 8 8 8 8 8 8 8 8" in everything
    rows = re.findall(
        r"^(dense|blocked|ring of \d) +" + r" +".join([r"(\d+\.\d+)"] * 5) + "$", everything, re.MULTILINE
    )
    assert [name for name, *_ in rows] == ["dense", "blocked", "ring of 2", "ring of 4", "ring of 8"]
    assert all(float(error) < 0.5 for _, *errors in rows for error in errors)  # "a small fraction of the tolerance"
    towers = re.findall(
        r"^(\w+) +loss (\S+), gradients of the towers differ by (\S+) of 1e-5$", everything, re.MULTILINE
    )
    assert [name for name, *_ in towers] == ["shard_map", "pmap"]
    assert all(float(difference) < 0.5 for *_, difference in towers)
    memory = dict(re.findall(r"^ +(\d+) +\d+ MiB +(\S+)$", everything, re.MULTILINE))
    assert float(memory["32768"]) < 0.1  # "about a twelfth"
    assert all(float(ratio) < 0.5 for ratio in memory.values())
    lines = re.findall(
        r"^(formula|ring), \S.*?  +(0|1, \S+ MiB)  +\d, (\S+) MiB  +(0|\d, \S+ MiB)$", everything, re.MULTILINE
    )
    assert lines == [("formula", "1, 96.0 MiB", "96.0", "0")] + [("ring", "0", "0.0", "7, 12.0 MiB")] * 2
    for one, two in (
        re.search(r"pair by pair (\S+), on the mesh (\S+)", everything).groups(),
        re.search(r"^ring over .*: (\S+)\nin float64: (\S+)", everything, re.MULTILINE).groups(),
    ):
        np.testing.assert_allclose(float(one), float(two), rtol=1e-4)


def finetune(everything: str):
    table = everything[everything.rindex("accuracy") :]
    rows = re.findall(r"^(\w+ \w+(?: \w+)?) +(\d\.\d+) +(\d\.\d+) +(\d\.\d+)$", table, re.MULTILINE)
    before, after, lora = ({row[0]: float(row[i]) for row in rows} for i in (1, 2, 3))
    assert before.keys() == {
        "new drawings",
        "new combinations",
        "the ink alone",
        "the symbol alone",
        "the old examples",
    }
    assert before["new drawings"] < 0.1 and before["the symbol alone"] < 0.15
    for trained in (after, lora):
        assert trained["new drawings"] > 0.55
        assert before["new combinations"] + 0.1 < trained["new combinations"] < trained["new drawings"]
        assert trained["the ink alone"] > 0.95
        assert trained["the old examples"] < before["the old examples"] - 0.05  # "what it forgot"
    assert "175,106 of 3,134,722 parameters are trained" in everything  # "a twentieth"


def training_mesh(everything: str):
    each, whole = re.search(r"^(\S+) of (\S+) numbers on each device", everything, re.MULTILINE).groups()
    assert int(each.replace(",", "")) < 0.3 * int(whole.replace(",", ""))  # a quarter of each matrix
    first = float(re.search(r"^one device +1 +(\S+)$", everything, re.MULTILINE)[1])
    steps = re.findall(r"^data=2, fsdp=2, tensor=2 +(\d) +(\S+) +(\S+)$", everything, re.MULTILINE)
    assert [int(micro_batches) for micro_batches, *_ in steps] == [1, 4]
    assert all(abs(float(loss) - first) < 2e-4 and float(error) < 0.5 for _, loss, error in steps)
    ends = re.findall(r"^(\w+) +on (data=\S+(?: \S+)?) +(\w+) after step (\d+) of 12$", everything, re.MULTILINE)
    assert ends == [
        ("undisturbed", "data=8", "finished", "12"),
        ("moved", "data=8", "stopped", "6"),
        ("moved", "data=2, fsdp=4", "finished", "12"),
    ]
    before, after = re.search(r"before the move (\S+), after it (\S+)", everything).groups()
    assert float(before) == 0.0 and float(after) < 0.01
    memory = [float(x) for x in re.findall(r"(\S+) GiB$", everything, re.MULTILINE)]
    assert len(memory) == 4 and memory[0] > 2 * memory[1] > 2 * memory[2]


def pod(everything: str):
    assert "256 chips; fits: True" in everything
    assert "over which something is gathered: fsdp\ngathers of the batch: 0" in everything
    products = float(re.search(r"products in the program / products of the model: (\S+)", everything)[1])
    assert abs(products - 1) < 0.02
    plans = re.findall(r"^\S+ on (v5\w:\S+): (\S+) of (\S+) GiB", everything, re.MULTILINE)
    assert [machine for machine, *_ in plans] == ["v5e:16x16", "v5p:8x8x8"] * 2
    assert all(float(needed) < float(memory) for _, needed, memory in plans)


def siglip2_training(everything: str):
    stages = "steps 0 to 10: sigmoid + captioning\nsteps 10 to 30: sigmoid + captioning + distillation + masked"
    assert stages in everything
    assert "the captioning loss fell by a third: True" in everything
    assert "first step with a teacher: 11" in everything
    assert "parameters of the trained model: logit_bias logit_scale text_model vision_model" in everything


def embed_and_search(everything: str):
    assert re.findall(r"(\w+) run: (\d+) embedded, (\d) parts", everything) == [
        ("second", "32", "0"),
        ("third", "0", "0"),
    ]
    assert re.findall(r"^shard \((\d), 2\): (\d+) embedded, (\d) parts", everything, re.MULTILINE) == [
        ("1", "32", "2"),
        ("0", "32", "0"),
    ]
    assert re.findall(r"faults: (.*)", everything) == ["[]", "['collection/part-000002.npy']", "[]"]
    assert "16 embedded again" in everything
    assert everything.count(": True\n") == 7 and "False" not in everything
    rows = re.findall(r"^ {4}([1-5]) +(\S.*)\.png +(\S+) +(\S+)$", everything, re.MULTILINE)
    assert [int(rank) for rank, *_ in rows] == 3 * [1, 2, 3, 4, 5]
    fruit, farm, music = ([name for _, name, *_ in rows[i : i + 5]] for i in (0, 5, 10))
    assert {*fruit[:3]} == {"melon", "lemon", "strawberry"}
    assert float(rows[2][2]) > float(rows[3][2]) + 0.05  # "by a wide gap"
    assert {*farm} == {"bison", "goat", "horse", "mammoth", "cow"} and music[0] == "flute"
    above_half = [float(probability) > 0.5 for *_, probability in rows]
    assert above_half[:5] == [True] * 3 + [False] * 2  # "exactly the fruits"
    assert rows[11][1] == "stethoscope" and above_half[11]
    nearest = re.findall(r"^(\w+)\.png +(\d) +(\w+).*\.png +(\S+)$", everything, re.MULTILINE)
    assert [(query, found) for query, rank, found, _ in nearest if rank == "1"] == [(x, x) for x in ("horse", "church")]
    others = [float(score) for _, rank, _, score in nearest if rank != "1"]
    assert all(score == "1.00" for _, rank, _, score in nearest if rank == "1")
    assert min(others) > 2 * max(float(score) for *_, score, _ in rows)  # "far higher"
    assert re.search(r"lemon\.png .* melon$", everything, re.MULTILINE)
    assert int(re.search(r"the thing that is drawn: (\d+) of 64", everything)[1]) > 25
    shares = [float(x) for x in re.findall(r"^recall .*: (\S+)$", everything, re.MULTILINE)]
    assert len(shares) == 3 and min(shares) > 0.9
    assert float(re.search(r"lowest (\S+)", everything)[1]) > 0.999
    whole, held = map(float, re.search(r"float32 (\S+) MB, int8 (\S+) MB", everything).groups())
    assert held < 0.4 * whole


def what_the_model_sees(everything: str):
    inside = dict(re.findall(r"^(\w+(?: middle)?) +points into the box: +(\d+) of 24$", everything, re.MULTILINE))
    counts = {method: int(count) for method, count in inside.items()}
    assert counts["attention"] >= 22  # "almost always"
    assert counts["raw"] + 5 < min(counts["occlusion"], counts["value"])
    assert int(re.search(r"within the box than outside: (\d+) of 24", everything)[1]) > 12
    assert " 512 x  512 pixels: 16 x 16 patches" in everything and "2048 x  512 pixels:  8 x 32 patches" in everything
    assert len(re.findall(r"^[48] x +\d+ patches  (?:tractor|top hat) ", everything, re.MULTILINE)) == 4
    clean, planted = everything.split("attention that is the same whatever the image")
    assert "Nothing stands out" in clean
    assert "1 entry with a norm of more than 3 times the median" in planted and "row 2 column 5" in planted
    before, after = map(int, re.findall(r"^(?:before|after) +(\d+)% of the right", planted, re.MULTILINE))
    assert after > before + 5
    before, after = map(float, re.findall(r"log loss (\S+)$", planted, re.MULTILINE))
    assert after < 0.7 * before


PROMISES = {
    "01_zero_shot": zero_shot,
    "02_checkpoints": checkpoints,
    "03_sigmoid_loss_on_a_mesh": ring,
    "04_finetune": finetune,
    "05_train_on_a_mesh": training_mesh,
    "06_embed_and_search": embed_and_search,
    "07_plan_a_pod": pod,
    "08_siglip2_training": siglip2_training,
    "09_what_the_model_sees": what_the_model_sees,
}


@pytest.mark.slow
def test_keeps_its_promises(request, executed):
    """Checks the numbers that the prose relies on."""
    name = request.node.callspec.params["notebook"].stem
    PROMISES[name]("\n".join(texts(executed)))
