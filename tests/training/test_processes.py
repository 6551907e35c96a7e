"""`siglip-jax train` over two real processes does what it does over one, and either goes on for the other."""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.support.pairs import write_classes, write_pairs
from tests.support.processes import run, started
from tests.support.tiny_checkpoint import write_checkpoint

SCRIPT = Path(__file__).parents[1] / "support" / "one_of_several_processes.py"


def train(processes, *words):
    run(SCRIPT, processes, "train", *words, timeout=900)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_classes(folder / "classes", 1, colours=True)
    return write_checkpoint(folder), write_pairs(folder / "pairs", 1), folder / "classes"


def outcome(out):
    """The weights and the metrics of a run, by step."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    metrics = {name: [line[name] for line in lines if name in line] for name in ("loss", "top1")}
    return safetensors.numpy.load_file(out / "model" / "model.safetensors"), metrics


def assert_same(found, expected):
    for path, x in expected[0].items():
        if path.endswith("k_proj.bias"):  # moves no logit: its gradient is rounding, and Adam makes whole steps of that
            continue
        np.testing.assert_allclose(found[0][path], x, rtol=0, atol=1e-6 * max(1, np.abs(x).max()), err_msg=path)
    for name, values in expected[1].items():
        np.testing.assert_allclose(found[1][name][-len(values) :], values, rtol=1e-5)


def words_of(recipe, files, *more):
    checkpoint, pairs, classes = files
    words = (recipe, "--data", pairs, "--model", checkpoint, "--batch-size", 8, "--log-every", 1, "--json")
    return *words, "--evaluate", classes, "--best", "top1", *more


@pytest.mark.slow
def test_two_processes_do_what_one_does_and_one_goes_on_for_them(files, tmp_path):
    """Of all recipes LiT shares most: images embedded before the first step, and a text tower cut in two."""
    words = words_of("lit", files, "--duration", "4 steps", "--save-every", 2, "--mesh.fsdp", 2)
    one, two = tmp_path / "one", tmp_path / "two"
    train(1, *words, "--out", one)
    expected = outcome(one)
    assert len(expected[1]["loss"]) == 4 and len(expected[1]["top1"]) == 2
    train(2, *words, "--out", two)
    assert_same(outcome(two), expected)
    assert (two / "process-1" / "log.jsonl").is_file()
    shutil.rmtree(two / "checkpoints" / "4")
    shutil.rmtree(two / "model")
    train(1, *words, "--out", two)  # from step 2
    assert_same(outcome(two), expected)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_same_step(files, tmp_path):
    words = words_of("finetune", files, "--duration", "3000 steps")
    log = tmp_path / "log.jsonl"
    with started(SCRIPT, 2, "train", *words, "--out", tmp_path) as running:
        until = time.monotonic() + 900
        while time.monotonic() < until and not (log.is_file() and log.stat().st_size):
            time.sleep(0.1)
        running[0].send_signal(signal.SIGTERM)
        ended = [process.communicate(timeout=900) for process in running]
    assert [process.returncode for process in running] == [143, 143], ended[0][1][-2000:]
    steps = {json.loads(path.read_text().splitlines()[-1])["step"] for path in (log, tmp_path / "process-1/log.jsonl")}
    assert len(steps) == 1 and (tmp_path / "checkpoints" / str(*steps)).is_dir()
