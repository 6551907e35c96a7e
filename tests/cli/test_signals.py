"""Ctrl-C and SIGTERM end a command with one line and the status of the signal, whatever is being imported or freed."""

import gc
import signal
import subprocess
import sys
import time

import pytest

from siglip_jax.cli import _signals

# The first heavy import waits, as it does on a slow disk, and swallows exceptions, as some imports do.
SLOW_IMPORT = """
import sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "jax":
            print("importing", flush=True)
            try:
                time.sleep(60)
            except BaseException:
                pass
            raise SystemExit(0)

sys.meta_path.insert(0, Slow())
sys.argv = ["siglip-jax", "classify", "image.png", "--labels", "a cat"]
from siglip_jax.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped")]
)
def test_a_signal_ends_a_command_that_is_still_importing(number, status, word):
    command = [sys.executable, "-c", SLOW_IMPORT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (status, f"siglip-jax: {word}\n")


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_is_not_swallowed_by_a_callback_of_the_garbage_collector(number, kind):
    sent = []

    def callback(phase, info):
        if not sent:
            sent.append(phase)
            signal.raise_signal(number)

    before = signal.getsignal(number)
    gc.callbacks.append(callback)
    try:
        with pytest.raises(kind) as raised, _signals.raised():
            gc.collect()
            time.sleep(60)
    finally:
        gc.callbacks.remove(callback)
    assert sent == ["start"]
    assert signal.getsignal(number) is before
    assert kind is KeyboardInterrupt or raised.value.code == 143


def test_other_ignored_exceptions_are_still_reported(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_type))

    class Broken:
        def __del__(self):
            raise ValueError("broken")

    with _signals.raised():
        Broken()
        gc.collect()
    assert seen == [ValueError]
