"""Several real processes as one program, over a few devices in all."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from siglip_jax.parallel import join_processes

DEVICES = 4  # in all
ROOT = Path(__file__).parents[2]


def compiled_in(folder: Path) -> dict[str, str]:
    """Returns the settings with which a process keeps its compiled programs in a folder; the tests keep none."""
    return {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@contextlib.contextmanager
def started(script: Path, processes: int, *words: object) -> Iterator[list[subprocess.Popen[str]]]:
    """Yields the processes of `python script PROCESSES PROCESS PORT WORDS...`, and ends what is left of them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    running = [
        subprocess.Popen(
            [sys.executable, *map(str, (script, processes, i, port, *words))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        for i in range(processes)
    ]
    try:
        yield running
    finally:
        for process in running:
            process.kill()


def run(script: Path, processes: int, *words: object, timeout: float) -> list[str]:
    """Runs the processes to their end, which must be a good one, and returns what each printed."""
    with started(script, processes, *words) as running:
        ended = [process.communicate(timeout=timeout) for process in running]
    for process, (_, errors) in zip(running, ended, strict=True):
        assert process.returncode == 0, errors[-2000:]
    return [out for out, _ in ended]


def join(processes: int, process: int, port: int) -> None:
    """Makes of this process one of several, each with its share of the devices; called in the script, first of all."""
    jax.config.update("jax_num_cpu_devices", DEVICES // processes)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    given = (f"127.0.0.1:{port}", processes, process) if processes > 1 else ()
    assert join_processes(*given) == (processes > 1)
