"""What `siglip-jax train` says on stderr while it runs: compilation, evaluations, and steps where no terminal is."""

import sys
from typing import Any

from siglip_jax.cli._output import Bar, say


class Report:
    """Follows a run through its callbacks."""

    def __init__(self, steps: Bar, images: Bar, quiet: bool) -> None:
        """Says nothing yet.

        Args:
          steps: bar of the steps, for a terminal.
          images: bar of the images that are embedded once, for a terminal.
          quiet: whether to say nothing, as all processes of a job but the first do.
        """
        self._steps, self._images, self._quiet = steps, images, quiet
        self._line: dict[str, Any] | None = None
        self._began = self._embeds = False

    def on_metrics(self, line: dict[str, Any]) -> None:
        """Takes a line of the log; says an evaluation at once."""
        if "loss" in line:
            self._line = line
            self._steps.note = _loss(line)
        elif "rolled_back_to" in line:
            self._say(f"back to step {line['rolled_back_to']}, after {line['step']} steps: the loss was not finite")
        else:
            found = ", ".join(f"{name} {value:.4g}" for name, value in line.items() if name != "step")
            self._say(f"step {line['step']}: {found}")

    def on_progress(self, done: int, total: int) -> None:
        """Takes the number of steps done; says it where there is no terminal."""
        if not self._began:
            self._say(f"compiling the training step, step {done + 1} of {total}")
            self._began = True
        elif self._line is not None and not sys.stderr.isatty():
            speed = self._line.get("examples_per_second")
            self._say(f"step {done} of {total}: {_loss(self._line)}" + (f", {speed:.4g} examples/s" if speed else ""))
        if not self._quiet:
            self._steps(done, total)

    def on_precompute(self, done: int, total: int) -> None:
        """Takes the number of images embedded."""
        if not self._embeds:
            self._say(f"embedding {total} images once, before the first step")
            self._embeds = True
        if not self._quiet:
            self._images(done, total)

    def _say(self, line: str) -> None:
        if not self._quiet:
            say(line)


def _loss(line: dict[str, Any]) -> str:
    """Returns the loss as text; a loss that is not finite is null in the log."""
    return "loss not finite" if line["loss"] is None else f"loss {line['loss']:.4g}"
