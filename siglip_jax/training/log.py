"""The log of a run: JSON lines in a file, callbacks, and TensorBoard on request."""

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from siglip_jax._files import write_atomically
from siglip_jax._optional import import_optional

OnMetrics = Callable[[dict[str, Any]], object]
"""Called with a line of the log: a dict with "step" and metrics."""

NAMED = 5  # unreadable examples named in a line of the log; all are counted


class Log:
    """Writes metrics by step to `log.jsonl` in a directory, and to TensorBoard files on request.

    Lines that an interrupted run wrote after its last checkpoint are dropped, because the resumed run logs those steps
    again.
    """

    def __init__(
        self, directory: Path, first: int, tensorboard: bool = False, on_metrics: OnMetrics | None = None
    ) -> None:
        """Opens the log of a run.

        Args:
          directory: directory of the run.
          first: number of steps that the run has done.
          tensorboard: also write TensorBoard files.
          on_metrics: called with each line, a dict with "step" and metrics; None: nothing is called.

        Raises:
          ValueError: if TensorBoard is asked for and tensorboardX is not installed.
        """
        path = directory / "log.jsonl"
        if path.is_file():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= first]
            write_atomically(path, "".join(line + "\n" for line in kept).encode())
        self._board = _board(directory / "tensorboard", first) if tensorboard else None
        self._on_metrics = on_metrics
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 closed by `__exit__`

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one line.

        Args:
          step: number of steps done.
          metrics: values by name; floats are rounded to six digits, NaN and infinity become null.
        """
        line = {"step": step} | {name: _short(value) for name, value in metrics.items()}
        try:
            print(json.dumps(line), file=self._file, flush=True)
        except OSError as error:  # a full disk
            error.filename = self._file.name
            raise
        if self._on_metrics is not None:
            self._on_metrics(line)
        if self._board is not None:
            for name, value in line.items():
                if name != "step" and isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _step_of(line: str) -> float:
    """Returns the step of a line of the log; infinity if the line is incomplete."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # an incomplete last line of a run that was killed
        return math.inf


def _short(value: Any) -> Any:
    """Returns a float rounded to six digits, None if it is not finite, and any other value unchanged."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _board(directory: Path, first: int) -> Any:
    """Returns a writer of TensorBoard files that drops the steps after `first`."""
    board: Any = import_optional("tensorboardX", "logging for TensorBoard", "tensorboard")
    return board.SummaryWriter(str(directory), purge_step=first + 1)


class Window:
    """The metrics of the steps since the last line of the log.

    Attributes:
      first: number of steps done when the window began.
      began: time when the window began, in seconds.
      waited: seconds spent waiting for data.
      steps: metrics of each step.
      reasons: names of unreadable examples, and how often each was met.
    """

    def __init__(self, done: int):
        """Begins a window after `done` steps."""
        self.first, self.began = done, time.monotonic()
        self.waited = 0.0
        self.steps: list[dict[str, float]] = []
        self.reasons: Counter[str] = Counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time within the context as waiting for data."""
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start

    def unreadable(self, names: tuple[str, ...]) -> None:
        """Adds the names of unreadable examples."""
        self.reasons.update(names)

    def add(self, metrics: Mapping[str, jax.Array]) -> int:
        """Waits for the metrics of a step and adds them; returns how many steps in a row were not finite."""
        values = {name: float(x) for name, x in jax.device_get(dict(metrics)).items()}
        bad = int(values.pop("skipped_in_a_row"))
        self.steps.append(values)
        return bad

    def line(self, done: int) -> dict[str, Any]:
        """Returns the line of the log after `done` steps: means over the finite steps, speed, and unreadable names."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        finite = [values for values in self.steps if np.isfinite(values["loss"])] or self.steps
        line: dict[str, Any] = {name: float(np.mean([values[name] for values in finite])) for name in finite[0]}
        line |= {"steps_per_second": (done - self.first) / seconds, "data_wait": self.waited / seconds}
        if self.reasons:
            line["unreadable"] = list(self.reasons)[:NAMED]
        return line
