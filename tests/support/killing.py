"""A program that is killed again and again at random moments, and started anew until it ends by itself."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.processes import compiled_in
from tests.support.quick import environment as quick_environment


def run_until_done(
    command: Sequence[object], progress: Callable[[], int], cache: Path, kills: int, longest: float, seed: int = 0
) -> int:
    """Runs a program until it ends by itself; returns how often it was killed.

    Args:
      progress: a number that grows with what the program has done.
      cache: folder for compiled programs.
      kills: how often to kill it, by SIGKILL and with the processes it started, as a machine that is taken away.
      longest: seconds after its first progress within which it is killed.
    """
    rng, killed = random.Random(seed), 0
    environment = os.environ | compiled_in(cache) | quick_environment()
    options = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    while True:
        before = progress()
        with subprocess.Popen(list(map(str, command)), start_new_session=True, **options) as process:
            if killed < kills:
                while process.poll() is None and progress() <= before:
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, longest))
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    killed += 1
                    continue
            errors = process.communicate()[1]
        if process.returncode:
            raise RuntimeError(f"the program ended with {process.returncode}: {errors[-2000:]}")
        return killed


def records(out: Path) -> int:
    """Returns how many parts of a collection have their record."""
    return len(list(out.glob("part-??????.json")))
