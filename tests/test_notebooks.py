"""Every notebook runs from top to bottom, and says what it says in the repository."""

import base64
import os
import re
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest

import siglip_jax
from siglip_jax.inference import load

nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def texts(notebook) -> list[str]:
    """Returns what the code cells printed, one entry a cell."""
    return [
        "".join(output.get("text", "") for output in cell.outputs if output.output_type == "stream")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def figures(notebook) -> list[bytes]:
    """Returns the PNG pictures of all outputs."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


@pytest.fixture(scope="module")
def executed(notebook, tmp_path_factory):
    fresh = nbformat.from_dict(notebook)
    folder = tmp_path_factory.mktemp("elsewhere")  # a notebook must not depend on where it is run
    # What a notebook computes several times over, as for each format of a checkpoint, is compiled once.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled"))}
    start = time.monotonic()
    client = nbclient.NotebookClient(
        fresh, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    client.execute(env=os.environ | cache | {"PYTHONPATH": str(Path(siglip_jax.__file__).parent.parent)})
    fresh.metadata["seconds"] = time.monotonic() - start
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


def test_runs_and_says_the_same(notebook, executed):
    assert executed.metadata["seconds"] < 120
    assert len(figures(executed)) == len(figures(notebook)) > 0
    for found, committed in zip(texts(executed), texts(notebook), strict=True):
        assert NUMBER.sub("#", found).split() == NUMBER.sub("#", committed).split()
        numbers = [[float(number) for number in NUMBER.findall(text)] for text in (found, committed)]
        np.testing.assert_allclose(*numbers, atol=0.1 + 1e-9)  # the last digit that is printed may round the other way


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
    assert f"temperature {siglip.logit_scale:.1f}, bias {siglip.logit_bias:.1f}" in everything


def checkpoints(everything: str):
    assert "byte for byte: True" in everything
    rows = re.findall(r"^(.+?) +(\d+) of 124 +(\S+) +(\d+) of 64$", everything, re.MULTILINE)
    table = {name: (int(equal), float(difference), int(right)) for name, equal, difference, right in rows}
    for name in ("the original", "big vision", "open clip", "orbax", "huggingface"):
        assert table[name][:2] == (124, 0)
    assert table["larger patches"][2] > table["more places"][2] + 5  # "no training at all", "where fine-tuning starts"
    assert everything.count("156 of 156 tensors equal") == 8


def ring(everything: str):
    assert "texts of device (d − k) mod 8: True" in everything
    assert "blocks computed in each step: 8 8 8 8 8 8 8 8" in everything
    rows = re.findall(
        r"^(dense|blocked|ring of \d) +" + r" +".join([r"(\d+\.\d+)"] * 5) + "$", everything, re.MULTILINE
    )
    assert [name for name, *_ in rows] == ["dense", "blocked", "ring of 2", "ring of 4", "ring of 8"]
    assert all(float(error) < 0.5 for _, *errors in rows for error in errors)  # "a small fraction of what is allowed"
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


PROMISES = {"01_zero_shot": zero_shot, "02_checkpoints": checkpoints, "03_sigmoid_loss_on_a_mesh": ring}


def test_keeps_its_promises(request, executed):
    """The numbers that the prose rests on."""
    name = request.node.callspec.params["notebook"].stem
    PROMISES[name]("\n".join(texts(executed)))
