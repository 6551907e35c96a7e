"""Lock files: a second holder is refused with the name of the first, and a killed holder is no obstacle."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest

from siglip_jax._lock import check_free, locked

HOLDING = """
import os, sys
from pathlib import Path
from siglip_jax._lock import locked

with locked(Path(sys.argv[1]), "a run"):
    if "fork" in sys.argv:
        ready, forked = os.pipe()
        if os.fork() == 0:
            sys.stdout = open(os.devnull, "w")
            os.close(1)
            os.write(forked, b"!")
            sys.stdin.read()
            os._exit(0)
        os.read(ready, 1)  # the child exists, and Python has let it go of the lock
    print("held", flush=True)
    sys.stdin.read()
"""


def holding(path, *options):
    """Returns a process that holds a lock until its input ends."""
    command = [sys.executable, "-c", HOLDING, path, *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_in_one_line_that_names_the_first(tmp_path):
    path = tmp_path / "run.lock"
    with holding(path) as process:
        said = (
            f"{tmp_path}: a run must be written by one process at a time, got process {process.pid} on"
            f" {socket.gethostname()} at work; wait for it to end, or choose another directory"
        )
        for refused in (lambda: locked(path, "a run").__enter__(), lambda: check_free(path, "a run")):
            with pytest.raises(BlockingIOError, match=f"^{re.escape(said)}$"):
                refused()
        process.stdin.close()
    assert list(tmp_path.iterdir()) == []
    with locked(path, "a run"):
        assert path.read_text() == f"{os.getpid()} {socket.gethostname()}\n"


@pytest.mark.parametrize("options", [(), ("fork",)])
def test_the_lock_of_a_killed_process_is_taken_over(options, tmp_path):
    path = tmp_path / "run.lock"
    with holding(path, *options) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert path.exists()
        check_free(path, "a run")
        with locked(path, "a run"):
            assert path.read_text().startswith(f"{os.getpid()} ")
    assert not path.exists()


def test_threads_of_one_process_exclude_each_other(tmp_path):
    inside, most, refused = [], [], []

    def work():
        for _ in range(50):
            try:
                with locked(tmp_path / "lock", "a run"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except BlockingIOError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(most) + len(refused) == 400
    assert list(tmp_path.iterdir()) == []
