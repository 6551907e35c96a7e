"""The training loop: steps, figures, checkpoints, and going on as if nothing had happened after any interruption."""

import contextlib
import dataclasses
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from siglip_jax._callbacks import OnProgress
from siglip_jax.parallel.processes import global_batch
from siglip_jax.training.checkpointing import Saver
from siglip_jax.training.log import Log, OnMetrics, Window
from siglip_jax.training.step import TrainState

PATIENCE = 10  # steps in a row that are not finite, before the run goes back to its last checkpoint
ROLLBACKS = 3  # times it does so without having reached a further checkpoint
IN_FLIGHT = 2  # steps handed to the devices and not yet done

Evaluate = Callable[[TrainState], Mapping[str, float]]


@runtime_checkable
class Data(Protocol):
    """Batches as a function of their number alone, as of `siglip_jax.data.pipeline.Pipeline`."""

    fingerprint: str  # changes if the batches do

    def batches(self, start: int = 0) -> Iterator[Any]:
        """Yields the batches from number `start` on, without end.

        Each has `arrays`, this process's rows by name, and `skipped`, what could not be read, with the reasons.
        """
        ...


@dataclasses.dataclass(frozen=True)
class LoopOptions:
    """Where a run is kept and what it says; nothing that changes its result.

    Attributes:
      directory: for checkpoints and log.
      save_every: steps between checkpoints; each is evaluated, if there is anything to evaluate with.
      keep: the last checkpoints that stay.
      best: name of the figure whose highest checkpoint stays too.
      log_every: steps between lines of the log.
      tensorboard: write TensorBoard's files too.
    """

    directory: Path
    save_every: int = 1000
    keep: int = 2
    best: str | None = None
    log_every: int = 20
    tensorboard: bool = False


class Outcome(NamedTuple):
    """How a run ended: its state, the steps done, and whether a signal stopped it before its end."""

    state: TrainState
    steps: int
    stopped: bool


def run_loop(
    step: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, jax.Array]]],
    state: TrainState,
    data: Data,
    steps: int,
    options: LoopOptions,
    *,
    identity: Mapping[str, Any],
    more_metrics: Callable[[int, float], Mapping[str, float]] = lambda step, rate: {},
    evaluate: Evaluate | None = None,
    mesh: Mesh | None = None,
    on_metrics: OnMetrics | None = None,
    on_progress: OnProgress | None = None,
) -> Outcome:
    """Runs what is left of a run, from its last checkpoint if there is one.

    SIGTERM and Ctrl-C save and return. A step that is not finite changes nothing (see `Step`); after `PATIENCE` of them
    in a row the run goes back to its last checkpoint and on with the data that come next.

    Args:
      step: as from `make_step`; it is given `state` away.
      state: before the first step.
      data: batches by their number.
      steps: of the whole run.
      identity: JSON that must be the same for a checkpoint to be this run's: the recipe.
      more_metrics: function from (steps done, steps per second) to further metrics for the log.
      evaluate: from a state to figures; called at every checkpoint.
      mesh: to cut batches over; None on one device.
      on_metrics: called with each line of the log, a dict with "step" and metrics.
      on_progress: called with (steps done, steps in all), as often as the log is written to.

    Raises:
      ValueError: if the directory holds a run of another identity or data, or the loss stays not finite.
    """
    options.directory.mkdir(parents=True, exist_ok=True)
    with (
        Saver(options.directory / "checkpoints", options.keep, options.best) as saver,
        _signals() as asked_to_stop,
        contextlib.ExitStack() as opened,
    ):
        loop = _Loop(
            step, data, steps, options, dict(identity), more_metrics, evaluate, mesh, on_metrics, on_progress, opened
        )
        return loop.run(state, saver, asked_to_stop)


@dataclasses.dataclass
class _Loop:
    step: Callable[..., Any]
    data: Data
    steps: int
    options: LoopOptions
    identity: dict[str, Any]
    more_metrics: Callable[[int, float], Mapping[str, float]]
    evaluate: Evaluate | None
    mesh: Mesh | None
    on_metrics: OnMetrics | None
    on_progress: OnProgress | None

    opened: contextlib.ExitStack  # closes the data, whose workers would outlive an error
    offset: int = 0  # batches that were passed over by going back
    unreadable: int = 0  # examples
    seconds: float = 0.0  # of earlier sessions
    rollbacks: int = 0  # since the last checkpoint

    def run(self, state: TrainState, saver: Saver, asked_to_stop: Callable[[int], bool]) -> Outcome:
        if saver.latest is None:
            self._save(saver, 0, state)  # a directory that cannot be written to is found out now
        else:
            state = self._restore(saver, state)
        done = int(state.step)
        if done >= self.steps:
            return Outcome(state, done, False)
        began = time.monotonic() - self.seconds
        self._report(done)
        with self._log(done) as log:
            window = Window(done)
            batches = self._batches(done)
            in_flight: deque[Mapping[str, jax.Array]] = deque()
            while done < self.steps:
                with window.waiting():
                    batch = next(batches)
                window.unreadable(batch.skipped)
                self.unreadable += len(batch.skipped)
                arrays = {name: x for name, x in batch.arrays.items() if name != "index"}  # no step asks for that
                arrays = arrays if self.mesh is None else global_batch(arrays, self.mesh)
                state, metrics = self.step(state, arrays)
                done += 1
                in_flight.append(metrics | {"skipped_in_a_row": state.skipped_in_a_row + 0})
                stop = asked_to_stop(done)
                last = done == self.steps or stop
                save_due = last or done % self.options.save_every == 0
                log_now = save_due or done % self.options.log_every == 0
                bad = 0
                while len(in_flight) > (0 if log_now else IN_FLIGHT):
                    bad = max(bad, window.add(in_flight.popleft()))
                if bad >= PATIENCE:
                    state, done = self._go_back(saver, state, done, log)
                    in_flight.clear()
                    window = Window(done)
                    batches = self._batches(done)
                    continue
                if log_now:
                    line = window.line(done) | self._counts(state)
                    line |= {**self.more_metrics(done, line["steps_per_second"]), "seconds": time.monotonic() - began}
                    log.write(done, line)
                    self._report(done)
                    window = Window(done)
                if last or (save_due and not bad):  # to go back to before what is going wrong
                    self.seconds = time.monotonic() - began
                    # Whoever stops a program waits only so long: no evaluation then.
                    judged = self._save(saver, done, state, judge=not stop)
                    if judged:
                        log.write(done, judged)
                    window = Window(done)  # saving and evaluating are not training
                if stop:
                    break
            saver.wait()
        return Outcome(state, done, done < self.steps)

    def _batches(self, done: int) -> Iterator[Any]:
        """Returns the batches from the one after `done` steps on; those before them are let go of."""
        self.opened.close()
        batches = self.data.batches(done + self.offset)
        close = getattr(batches, "close", None)
        if close is not None:
            self.opened.callback(close)
        return batches

    def _log(self, done: int) -> Log:
        """Opens the log; processes other than the first keep theirs beside it, for what only they can see."""
        directory = self.options.directory
        if jax.process_index():
            directory = directory / f"process-{jax.process_index()}"
            directory.mkdir(exist_ok=True)
        return Log(directory, done, self.options.tensorboard and not jax.process_index(), self.on_metrics)

    def _report(self, done: int) -> None:
        if self.on_progress is not None:
            self.on_progress(done, self.steps)

    def _counts(self, state: TrainState) -> dict[str, int]:
        return {"skipped_steps": int(state.skipped), "unreadable_examples": self.unreadable}

    def _save(self, saver: Saver, done: int, state: TrainState, judge: bool = False) -> Mapping[str, float]:
        judged = self.evaluate(state) if self.evaluate is not None and judge else {}
        facts = {"identity": self.identity, "data": self.data.fingerprint, "offset": self.offset}
        saver.save(done, state, facts | {"unreadable": self.unreadable, "seconds": self.seconds}, judged)
        if done:
            self.rollbacks = 0
        return judged

    def _restore(self, saver: Saver, like: TrainState) -> TrainState:
        saver.wait()
        step = saver.latest
        if step is None:
            raise ValueError(f"{self.options.directory}: expected a checkpoint to go on from, found none")
        state, facts = saver.restore(step, like)
        check_same_run(self.options.directory, facts, self.identity, self.data.fingerprint)
        self.offset, self.unreadable = facts["offset"], facts["unreadable"]
        self.seconds = facts["seconds"]
        return state

    def _go_back(self, saver: Saver, state: TrainState, done: int, log: Log) -> tuple[TrainState, int]:
        self.rollbacks += 1
        if self.rollbacks > ROLLBACKS:
            raise ValueError(
                f"the loss was not finite in {PATIENCE} steps in a row, {self.rollbacks} times since the last"
                f" checkpoint; the run is kept in {self.options.directory}: lower the rate, or look at the data"
            )
        passed = done + self.offset
        rollbacks = self.rollbacks
        state = self._restore(saver, state)
        self.rollbacks = rollbacks
        back = int(state.step)
        self.offset = passed - back  # on with data not seen yet
        log.write(done, {"rolled_back_to": back})
        return state, back


def check_same_run(directory: Path, facts: Mapping[str, Any], identity: Mapping[str, Any], data: str) -> None:
    """Refuses to go on with a run of another recipe or other data.

    Raises:
      ValueError: with what differs.
    """
    found = facts["identity"]
    differing = [
        f"{name} (there {found.get(name)!r}, here {identity.get(name)!r})"
        for name in sorted(found.keys() | identity.keys())
        if found.get(name) != identity.get(name)
    ]
    if facts["data"] != data:
        differing.append("the data")
    if differing:
        raise ValueError(
            f"{directory} holds a run with another {', '.join(differing)}; give another output directory, or the same"
            " options"
        )


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[int], bool]]:
    """Yields what says whether to stop after a step; a second Ctrl-C does not wait for that."""
    asked = False

    def note(number: int, frame: Any) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    if jax.process_count() > 1:  # all processes must stop at the same step; jax watches SIGTERM for that
        yield multihost_utils.reached_preemption_sync_point
        return
    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread, as in a notebook's worker: signals are none of our business
        yield lambda step: False
        return
    try:
        yield lambda step: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
