"""The benchmark of a GPU is rehearsed on a CPU, so that no time on a card is spent on a mistake."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


class Scripted:
    """A worker whose answers are given."""

    def __init__(self, *answers):
        self.answers, self.orders, self.closed = list(answers), [], False

    def order(self, rows, seconds):
        self.orders.append([row.name for row in rows])

    def answer(self, seconds):
        return self.answers.pop(0)

    def close(self):
        self.closed = True


@pytest.mark.slow
def test_the_rehearsal_has_every_row_of_our_side(gpu, tmp_path):
    sections = ["loss", "forward", "attention"]
    command = [
        sys.executable,
        BENCHMARKS / "gpu.py",
        "--tiny",
        "--sides",
        "ours",
        "--out",
        tmp_path,
        "--seconds",
        "900",
    ]
    done = subprocess.run([*command, "--sections", *sections], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    facts = {key: value for line in lines for key, value in line.get("facts", {}).items()}
    rows = {(row["section"], row["cell"], row["name"]): row for row in lines if "facts" not in row}
    planned = [row for row in gpu.plan(gpu.TINY) if row.section in sections and row.side == "ours"]
    assert facts["platform"] == "cpu"
    assert list(rows) == [(row.section, row.cell, row.name) for row in planned]
    failed = {key[2] for key, row in rows.items() if "why" in row}
    assert failed <= {"ours, cudnn"}  # the others run everywhere
    assert all("\n" not in row["why"] for row in rows.values() if "why" in row)
    measured = [row for row in rows.values() if "why" not in row]
    assert all(row["seconds"] > 0 and row["tflops"] > 0 and row["bytes"] > 0 for row in measured)
    # Random embeddings: the loss is that of pairs that do not match, for each image softplus(-10) and softplus(10).
    assert all(row["loss"] == pytest.approx(10, rel=0.02) for row in measured if row["section"] == "loss")
    int8 = [row["difference"] for row in measured if row["name"] == "ours, int8"]
    assert len(int8) == 2 and all(0 < difference < 0.1 for difference in int8)
    text = (tmp_path / "results.txt").read_text()
    assert all(f"\n  {row.name} " in text for row in planned)
    assert text.startswith("device cpu, jax ")


@pytest.mark.slow
def test_the_training_step_of_the_benchmark_has_the_shapes_of_its_arguments(gpu):
    import gpu_ours
    import jax

    row = next(row for row in gpu.plan(gpu.TINY) if row.settings.get("remat") == "full")
    program = gpu_ours.program_of(row)
    state, metrics = jax.eval_shape(program.function, *program.shapes)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), (state, metrics["loss"])) == jax.tree.map(
        lambda x: (x.shape, x.dtype), (program.shapes[0], jax.ShapeDtypeStruct((), "float32"))
    )
    made = program.make()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
        lambda x: (x.shape, x.dtype), program.shapes
    )


def test_every_section_has_both_sides_and_a_share_of_the_time(gpu):
    rows = gpu.plan(gpu.FULL)
    units = gpu.units(rows, list(gpu.SIDES))
    assert [(unit.rows[0].section, unit.side) for unit in units] == [(s, side) for s in gpu.SHARE for side in gpu.SIDES]
    assert sum(len(unit.rows) for unit in units) == len(rows) == len({(row.cell, row.name) for row in rows})
    untils = [unit.until for unit in units]
    assert untils == sorted(untils) and untils[-1] == pytest.approx(1)


def test_rates_count_what_a_row_does_and_not_what_is_repeated(gpu):
    import gpu_plan

    rows = {row.name: row for row in gpu.plan(gpu.FULL) if row.section == "training" and "base" in row.cell}
    flops, examples = gpu_plan.work_of(rows["ours, remat full"])
    assert (flops, examples) == gpu_plan.work_of(rows["torch, compiled"])
    assert examples == 256 and flops == pytest.approx(256 * 3 * 47e9, rel=0.05)  # 35.1 + 11.5 GFLOP a pair, and loss
    found = gpu.result(rows["ours, remat full"], {"seconds": 0.25, "bytes": 10**10})
    assert found["per_second"] == 1024 and found["tflops"] == pytest.approx(flops * 4 / 1e12)


def test_a_process_that_ends_costs_one_row_and_the_rest_go_on(gpu, tmp_path):
    rows = [row for row in gpu.plan(gpu.TINY) if row.section == "loss" and row.side == "ours"][:3]
    results, fine = gpu.Results(tmp_path), {"seconds": 0.5, "bytes": 1000}
    first = Scripted({"facts": {"jax": "1"}}, {"row": 0, **fine}, {}, "the process ended with status 9: killed")
    second = Scripted({"facts": {"jax": "1"}}, {"row": 0, **fine})
    gpu.run(gpu.Unit("ours", rows, 1.0), first, results, time.monotonic() + 60, 0.0, lambda: second)
    assert first.closed and second.closed
    assert second.orders == [[rows[2].name]]
    assert [row.get("why") for row in results.rows] == [None, "the process ended with status 9: killed", None]
    assert results.text.read_text().startswith("jax 1\n")


def test_rows_for_which_no_time_is_left_say_so(gpu, tmp_path):
    rows = [row for row in gpu.plan(gpu.TINY) if row.section == "loss" and row.side == "torch"]
    results, worker = gpu.Results(tmp_path), Scripted("no answer for 0 s")
    gpu.run(gpu.Unit("torch", rows, 1.0), worker, results, time.monotonic(), 0.0, None)
    assert [row["why"] for row in results.rows] == ["no time was left"] * len(rows)
    assert len(results.json.read_text().splitlines()) == len(rows) and worker.closed


def test_the_table_of_estimates_says_what_fits_and_that_nothing_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import tpu

    row = {
        "model": "B/16-224",
        "chip": "v5e",
        "work": "training",
        "chips": 4,
        "batch": 256,
        "remat": None,
        "images_per_second_per_chip": 1234.56,
        "fits": True,
        "needed": 12.3e9,
        "memory": 16.9e9,
        "seconds": 0.05184,
        "mfu": 0.408,
        "versions": {"jax": "1.2", "libtpu": "3.4"},
    }
    nothing = {"seconds": None, "mfu": None, "images_per_second_per_chip": None}
    refused = row | nothing | {"fits": False, "needed": 17.2e9, "remat": "full"}
    lines = tpu.table([row, refused]).splitlines()
    assert lines[0] == "Estimated by XLA, not measured (jax 1.2, libtpu 3.4)."
    assert " ".join(lines[-2].split()) == "B/16-224 training v5e 64 nothing 51.84 1,234.6 41% 12.3 / 16.9"
    assert " ".join(lines[-1].split()) == "B/16-224 training v5e 64 full does not fit 17.2 / 16.9"


def test_the_published_estimates_are_of_these_models_and_their_table_is_that_of_the_numbers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import tpu

    from siglip_jax.configs.variants import find

    rows = json.loads((BENCHMARKS / "results" / "tpu-estimates.json").read_text())
    assert (BENCHMARKS / "results" / "tpu-estimates.txt").read_text() == tpu.table(rows)
    assert {row["model"] for row in rows} <= set(tpu.MODELS)
    for row in rows:
        name, images, pairs, remat = tpu.MODELS[row["model"]]
        assert find(name).short_name == name
        assert row["batch"] == (images if row["work"] == "forward" else 4 * pairs)
        assert row["remat"] == (None if row["work"] == "forward" else remat)
        assert row["seconds"] is None or 0 < row["mfu"] < 1


def test_the_published_table_of_remat_policies_is_that_of_the_numbers_and_of_all_policies(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import remat

    from siglip_jax.models.encoder import REMAT_POLICIES

    rows = json.loads((BENCHMARKS / "results" / "remat.json").read_text())
    assert (BENCHMARKS / "results" / "remat.txt").read_text() == remat.table(rows)
    for device, images in remat.IMAGES.items():
        found = {row["remat"]: row for row in rows if row["device"] == device}
        assert set(found) == {"none", *REMAT_POLICIES}
        assert {row["images"] for row in found.values()} == {images}
        # What keeps less repeats more.
        kept = [found[name]["temporaries"] for name in ("none", *REMAT_POLICIES)]
        repeated = [found[name]["operations"] for name in ("none", *REMAT_POLICIES)]
        assert kept == sorted(kept, reverse=True) and repeated == sorted(repeated)
