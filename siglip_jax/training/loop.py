"""The training loop: steps, metrics, checkpoints, and resuming after any interruption to the same result."""

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

PATIENCE = 10  # steps in a row that are not finite, after which the run goes back to its last checkpoint
ROLLBACKS = 3  # times that it goes back without reaching another checkpoint
IN_FLIGHT = 2  # steps dispatched to the devices and not yet done

Evaluate = Callable[[TrainState], Mapping[str, float]]


@runtime_checkable
class Data(Protocol):
    """Batches that depend on their index alone, like those of `siglip_jax.data.pipeline.Pipeline`."""

    @property
    def fingerprint(self) -> str:
        """String that differs if the batches do."""
        ...

    def batches(self, start: int = 0) -> Iterator[Any]:
        """Yields batches without end.

        Args:
          start: index of the first batch.

        Yields:
          Objects with `arrays`, this process's rows of each array by name, and `skipped`, the unreadable examples with
          the reasons.
        """
        ...


@dataclasses.dataclass(frozen=True)
class LoopOptions:
    """Options of a run that do not change its result: where it is stored, and what it logs.

    Attributes:
      directory: directory of checkpoints and log.
      save_every: steps between checkpoints; each checkpoint is evaluated if there is an evaluation.
      keep: number of latest checkpoints to keep.
      best: name of a metric of the evaluation; the checkpoint where it is highest is kept too. None: only the latest.
      log_every: steps between lines of the log.
      tensorboard: whether to write TensorBoard files too.
    """

    directory: Path
    save_every: int = 1000
    keep: int = 2
    best: str | None = None
    log_every: int = 20
    tensorboard: bool = False


class Entry(NamedTuple):
    """How a run enters a stage whose state has another structure than that of the stage before.

    Attributes:
      start: last step of the stage before.
      before: state of the stage before, or the shapes, dtypes and shardings of its arrays.
      enter: function from the last state of the stage before to the first of this one.
    """

    start: int
    before: TrainState
    enter: Callable[[TrainState], TrainState]


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
      state: state after the last step.
      steps: number of steps done.
      stopped: whether a signal stopped the run before its end.
    """

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
    entry: Entry | None = None,
    total: int | None = None,
) -> Outcome:
    """Runs the remaining steps of a run or of a stage of it, from its last checkpoint if there is one.

    SIGTERM and Ctrl-C save a checkpoint and return. A step that is not finite changes no parameter (see `Step`); after
    ten of them in a row the run goes back to its last checkpoint and continues with data that it has not seen.

    Args:
      step: jitted step, as from `make_step`, which donates its input state.
      state: state before the first step; of a later stage, the state that it was entered with.
      data: batches by index.
      steps: steps of the run up to the end of the stage.
      options: where the run is stored, and what it logs.
      identity: values that JSON can hold and that must equal those of the run being resumed: the recipe.
      more_metrics: function from (steps done, steps per second) to further metrics for the log.
      evaluate: function from a state to metrics, called at every checkpoint; None: nothing is evaluated.
      mesh: mesh over whose `data` and `fsdp` axes batches are sharded; None: one device.
      on_metrics: called with each line of the log, a dict with "step" and metrics; None: nothing is called.
      on_progress: called with (steps done, steps in all) as often as the log is written; None: nothing is called.
      entry: how the stage is entered; None: it is the first.
      total: steps of the whole run; None: `steps`.

    Returns:
      The last state, the number of steps done, and whether a signal stopped the run.

    Raises:
      ValueError: if the directory holds a run of another identity or other data, the loss stays not finite, or the
        evaluation lacks the metric `best`.
    """
    options.directory.mkdir(parents=True, exist_ok=True)
    with (
        Saver(options.directory / "checkpoints", options.keep, options.best) as saver,
        _signals() as asked_to_stop,
        contextlib.ExitStack() as opened,
    ):
        given = options, dict(identity), more_metrics, evaluate, mesh, on_metrics, on_progress
        loop = _Loop(step, data, steps, total or steps, *given, entry, opened)
        return loop.run(state, saver, asked_to_stop)


@dataclasses.dataclass
class _Loop:
    """A run and what it counts; see `run_loop`."""

    step: Callable[..., Any]
    data: Data
    steps: int
    total: int
    options: LoopOptions
    identity: dict[str, Any]
    more_metrics: Callable[[int, float], Mapping[str, float]]
    evaluate: Evaluate | None
    mesh: Mesh | None
    on_metrics: OnMetrics | None
    on_progress: OnProgress | None
    entry: Entry | None

    opened: contextlib.ExitStack  # closes the data, whose workers would outlive an error
    offset: int = 0  # batches that were skipped by going back
    unreadable: int = 0  # unreadable examples so far
    seconds: float = 0.0  # time that the run took up to its last checkpoint
    rollbacks: int = 0  # times that the run went back since its last checkpoint

    def run(self, state: TrainState, saver: Saver, asked_to_stop: Callable[[int], bool]) -> Outcome:
        """Runs the remaining steps."""
        if saver.latest is None:
            self._save(saver, 0, state)  # fails now if the directory cannot be written to
        elif saver.latest > self.steps:
            return Outcome(state, saver.latest, False)  # the stage is over, and the state is that of a later one
        elif self.entry is None or saver.latest > self.entry.start:
            state = self._restore(saver, state)
        else:
            self._recall(saver.facts(saver.latest))
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
                arrays = {name: x for name, x in batch.arrays.items() if name != "index"}  # not used by a step
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
                if last or (save_due and not bad):  # no checkpoint amid steps that are not finite
                    self.seconds = time.monotonic() - began
                    # No evaluation after a signal: a process that stops slowly is killed.
                    judged = self._save(saver, done, state, judge=not stop)
                    if judged:
                        log.write(done, judged)
                    window = Window(done)  # leaves out the time of saving and evaluating
                if stop:
                    break
            saver.wait()
        return Outcome(state, done, done < self.steps)

    def _batches(self, done: int) -> Iterator[Any]:
        """Returns the batches after `done` steps, and closes the iterator of the earlier ones."""
        self.opened.close()
        batches = self.data.batches(done + self.offset)
        close = getattr(batches, "close", None)
        if close is not None:
            self.opened.callback(close)
        return batches

    def _log(self, done: int) -> Log:
        """Opens the log of this process; each but the first has its own, for its unreadable examples, in a folder."""
        directory = self.options.directory
        if jax.process_index():
            directory = directory / f"process-{jax.process_index()}"
            directory.mkdir(exist_ok=True)
        return Log(directory, done, self.options.tensorboard and not jax.process_index(), self.on_metrics)

    def _report(self, done: int) -> None:
        """Calls `on_progress`."""
        if self.on_progress is not None:
            self.on_progress(done, self.total)

    def _counts(self, state: TrainState) -> dict[str, int]:
        """Returns the metrics that count over the whole run."""
        return {"skipped_steps": int(state.skipped), "unreadable_examples": self.unreadable}

    def _save(self, saver: Saver, done: int, state: TrainState, judge: bool = False) -> Mapping[str, float]:
        """Evaluates the state if asked to, saves it and returns the metrics of the evaluation."""
        judged = self.evaluate(state) if self.evaluate is not None and judge else {}
        facts = {"identity": self.identity, "data": self.data.fingerprint, "offset": self.offset}
        saver.save(done, state, facts | {"unreadable": self.unreadable, "seconds": self.seconds}, judged)
        if done:
            self.rollbacks = 0
        best = self.options.best
        if judged and best is not None and best not in judged:
            saver.wait()
            raise ValueError(
                f"best must be one of the metrics {', '.join(judged)}, got {best!r}; step {done} is saved, so"
                " resume with another"
            )
        return judged

    def _restore(self, saver: Saver, like: TrainState) -> TrainState:
        """Returns the state of the last checkpoint, and restores the counts."""
        saver.wait()
        step = saver.latest
        if step is None:
            raise ValueError(f"{self.options.directory}: the run must have a checkpoint to resume from, got none")
        of_stage_before = self.entry is not None and step <= self.entry.start
        state, facts = saver.restore(step, self.entry.before if self.entry and of_stage_before else like)
        self._recall(facts)
        return self.entry.enter(state) if self.entry and of_stage_before else state

    def _recall(self, facts: Mapping[str, Any]) -> None:
        """Restores the counts that were saved with a checkpoint of this run."""
        check_same_run(self.options.directory, facts, self.identity, self.data.fingerprint)
        self.offset, self.unreadable = facts["offset"], facts["unreadable"]
        self.seconds = facts["seconds"]

    def _go_back(self, saver: Saver, state: TrainState, done: int, log: Log) -> tuple[TrainState, int]:
        """Returns the state and the step of the last checkpoint, and skips the batches since."""
        self.rollbacks += 1
        if self.rollbacks > ROLLBACKS:
            raise ValueError(
                f"{self.options.directory}: the loss must be finite, got NaN or infinity in {PATIENCE} steps in a row,"
                f" {self.rollbacks} times since the last checkpoint; lower the rate, or look at the data"
            )
        passed = done + self.offset
        rollbacks = self.rollbacks
        state = self._restore(saver, state)
        self.rollbacks = rollbacks
        back = int(state.step)
        self.offset = passed - back  # continues with data not seen yet
        log.write(done, {"rolled_back_to": back})
        return state, back


def check_resumable(directory: Path, identity: Mapping[str, Any], data: str) -> None:
    """Checks that a directory holds no other run, and changes nothing in it.

    Args:
      directory: directory of the run.
      identity: values that must be the same: the recipe, and hashes by name under "fingerprints".
      data: fingerprint of the data.

    Raises:
      ValueError: if the recipe or the data of the run there differ; the message names what differs.
    """
    if (directory / "checkpoints").is_dir():
        with Saver(directory / "checkpoints") as saver:
            if saver.latest is not None:
                check_same_run(directory, saver.facts(saver.latest), identity, data)
    if jax.process_count() > 1:  # else the first process would make the folder before another has looked for it
        multihost_utils.sync_global_devices(f"checked: {directory}")


def check_same_run(directory: Path, facts: Mapping[str, Any], identity: Mapping[str, Any], data: str) -> None:
    """Checks that a checkpoint belongs to this run.

    Args:
      directory: directory of the run, for the message.
      facts: facts that were saved with the checkpoint.
      identity: values that must be the same: the recipe, and hashes by name under "fingerprints".
      data: fingerprint of the data.

    Raises:
      ValueError: if the recipe or the data differ; the message names what differs.
    """
    found, wanted = dict(facts["identity"]), dict(identity)
    before, now = ({"data": d} | i.pop("fingerprints", {}) for d, i in ((facts["data"], found), (data, wanted)))
    if found != wanted:  # the recipe's seed and batch size are named; data with others may be the same
        before["data"], now["data"] = (hashes["data"].partition(" seed=")[0] for hashes in (before, now))
    differing = [
        f"{name} must be {found.get(name)!r}, got {wanted.get(name)!r}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ] + [
        f"the {name.replace('_', ' ')} must be {'those' if name == 'data' else 'that'} of this run, got"
        f" {'others' if name == 'data' else 'another'}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if differing:
        raise ValueError(
            f"{directory}: to resume the run, {', '.join(differing)}; give another output directory, or the same"
            " options"
        )


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[int], bool]]:
    """Yields a function of the step that returns whether to stop after it; a second Ctrl-C stops at once."""
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
    except ValueError:  # handlers can be set in the main thread only, and a notebook may use another
        yield lambda step: False
        return
    try:
        yield lambda step: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
