"""Interruption, non-finite steps and other devices: a run goes on as if nothing had happened, or says why not."""

import dataclasses
import json
import os
import signal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siglip_jax import make_mesh
from siglip_jax.parallel.sharding import shard_params
from siglip_jax.training.loop import PATIENCE, ROLLBACKS, LoopOptions, run_loop
from siglip_jax.training.objective import Objective
from siglip_jax.training.step import Step, init_state, make_step


class Batch(NamedTuple):
    arrays: dict
    skipped: tuple = ()


class Data:
    """Batches by their number; what `spoil` says happens when one is made."""

    fingerprint = "numbers"

    def __init__(self, spoil=lambda number: None):
        self.spoil, self.asked, self.open = spoil, [], 0

    def batches(self, start=0):
        number = start
        self.open += 1
        try:
            yield from self._batches(number)
        finally:
            self.open -= 1

    def _batches(self, number):
        while True:
            self.asked.append(number)
            x = np.random.default_rng(number).normal(size=(8, 16)).astype(np.float32)
            if self.spoil(number) == "nan":
                x[:] = np.nan
            yield Batch({"x": x}, ("shard:7: broken",) if number == 3 else ())
            number += 1


@dataclasses.dataclass(frozen=True)
class Line(Objective):
    """Learns a matrix."""

    def embed(self, params, batch, key):
        return batch["x"] @ params["fc1"]["kernel"]

    def loss(self, params, embeds, batch):
        return jnp.mean((embeds - batch["x"]) ** 2), {}


def run(directory, data, steps=20, mesh=None, identity=None, save_every=5, evaluate=None, **options):
    """Trains on `data` in `directory` and returns how it ended."""
    params = {"fc1": {"kernel": jnp.zeros((16, 16))}}
    params = params if mesh is None else shard_params(params, mesh)
    step = Step(Line(None, lambda key, pixels: pixels), optax.adam(0.05), average=0.9, mesh=mesh)
    with jax.numpy_dtype_promotion("standard"):
        state = init_state(params, lambda path: False, step.optimizer, True, mesh)
        settings = LoopOptions(directory, save_every=save_every, log_every=5, **options)
        known = {"seed": 0} if identity is None else identity
        return run_loop(
            make_step(step, state), state, data, steps, settings, identity=known, evaluate=evaluate, mesh=mesh
        )


def arrays(outcome):
    return jax.tree.map(np.array, (outcome.state.trained, outcome.state.average, outcome.state.optimizer))


def lines(directory):
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return arrays(run(directory, Data())), lines(directory)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_call_goes_on(tmp_path, whole, number):
    def stop(batch):
        if batch == 7:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    outcome = run(tmp_path, Data(stop))
    assert (outcome.stopped, outcome.steps) == (True, 8)
    assert signal.getsignal(number) is before
    data = Data()
    outcome = run(tmp_path, data)
    assert (outcome.stopped, outcome.steps, data.asked[0]) == (False, 20, 8)
    jax.tree.map(np.testing.assert_array_equal, arrays(outcome), whole[0])
    assert [line["step"] for line in lines(tmp_path)] == [5, 8, 10, 15, 20]
    again = run(tmp_path, Data())
    assert (again.stopped, again.steps) == (False, 20)
    jax.tree.map(np.testing.assert_array_equal, arrays(again), whole[0])


def test_the_log_names_and_counts(whole):
    log = whole[1]
    assert [line["step"] for line in log] == [5, 10, 15, 20]
    assert log[0]["unreadable"] == ["shard:7: broken"] and log[3]["unreadable_examples"] == 1
    assert log[3]["loss"] < log[0]["loss"] / 2 and log[3]["skipped_steps"] == 0
    assert {"steps_per_second", "data_wait", "gradient_norm/fc1", "update_norm/fc1", "seconds"} <= log[0].keys()
    assert 0 <= log[0]["data_wait"] <= 1


def test_a_lost_step_is_counted_and_changes_nothing_else(tmp_path):
    outcome = run(tmp_path, Data(lambda number: "nan" if number == 6 else None))
    assert (int(outcome.state.skipped), outcome.steps) == (1, 20)
    assert lines(tmp_path)[-1]["skipped_steps"] == 1 and lines(tmp_path)[1]["loss"] < 2


@pytest.mark.slow
def test_a_run_of_lost_steps_goes_back_and_on_with_other_data(tmp_path):
    data = Data(lambda number: "nan" if 6 <= number < 6 + PATIENCE + 3 else None)
    outcome = run(tmp_path, data)
    assert outcome.steps == 20 and np.isfinite(np.asarray(outcome.state.trained["fc1"]["kernel"])).all()
    assert [line["rolled_back_to"] for line in lines(tmp_path) if "rolled_back_to" in line] == [5]
    assert data.open == 0 and max(data.asked) >= 20 + PATIENCE  # what made it go wrong was passed over


def test_data_that_are_never_finite_end_the_run_with_advice(tmp_path):
    data = Data(lambda number: "nan")
    with pytest.raises(ValueError, match=f"{PATIENCE} steps in a row, {ROLLBACKS + 1} times.*lower the rate"):
        run(tmp_path, data, steps=100)
    assert data.open == 0  # worker processes would go on


def test_another_recipe_or_other_data_are_refused_by_name(tmp_path):
    run(tmp_path, Data(), steps=5)
    with pytest.raises(ValueError, match="to resume the run, seed must be 0, got 1; give another output directory"):
        run(tmp_path, Data(), identity={"seed": 1})
    other = Data()
    other.fingerprint = "letters"
    with pytest.raises(ValueError, match="the data must be those of this run, got others"):
        run(tmp_path, other)


@pytest.mark.slow
def test_a_run_goes_on_on_other_devices(tmp_path, whole):
    run(tmp_path, Data(), steps=10, mesh=make_mesh(data=2, fsdp=4))
    outcome = run(tmp_path, Data(), mesh=make_mesh(data=2, fsdp=2, tensor=2))
    kernel = outcome.state.trained["fc1"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (8, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), arrays(outcome), whole[0])


def test_an_unknown_best_metric_is_told_after_the_first_save_and_a_known_one_goes_on(tmp_path):
    options = {"save_every": 5, "steps": 10, "evaluate": lambda state: {"top1": 0.5, "top5": 0.75}}
    with pytest.raises(ValueError, match="best must be one of the metrics top1, top5, got 'top-1'; step 5 is saved"):
        run(tmp_path, Data(), best="top-1", **options)
    data = Data()
    assert run(tmp_path, data, best="top1", **options).steps == 10 and data.asked[0] == 5


def test_the_best_and_the_last_checkpoints_stay(tmp_path):
    metrics = iter([0.1, 0.9, 0.3, 0.2])

    def evaluate(state):
        return {"top1": next(metrics)}

    run(tmp_path, Data(), evaluate=evaluate, keep=1, best="top1", tensorboard=True)
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "20"]
    assert [line["top1"] for line in lines(tmp_path) if "top1" in line] == [0.1, 0.9, 0.3, 0.2]


def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path):
    run(tmp_path, Data(), steps=5)
    for path in (tmp_path / "checkpoints" / "5" / "facts").iterdir():
        path.write_text("{")
    with pytest.raises(ValueError, match="the checkpoint must be one of this run, got one that does not fit"):
        run(tmp_path, Data())
