"""A program that is killed again and again at random moments, and started anew until it ends by itself."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


def run_until_done(command: Sequence[object], out: Path, cache: Path, kills: int, longest: float, seed: int = 0) -> int:
    """Runs a program that writes records of parts into `out`; returns how often it was killed.

    Args:
      cache: folder for compiled programs.
      kills: how often to kill it, by SIGKILL.
      longest: seconds after its first new record within which it is killed.
    """
    rng, killed = random.Random(seed), 0
    environment = os.environ | {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    while True:
        before = records(out)
        with subprocess.Popen(
            list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            if killed < kills:
                while process.poll() is None and records(out) <= before:
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, longest))
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    killed += 1
                    continue
            errors = process.communicate()[1]
        if process.returncode:
            raise RuntimeError(f"the program ended with {process.returncode}: {errors[-2000:]}")
        return killed


def records(out: Path) -> int:
    """Returns how many parts have their record."""
    return len(list(out.glob("part-??????.json")))
