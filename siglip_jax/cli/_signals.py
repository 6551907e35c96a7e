"""Ctrl-C and SIGTERM end every command: at once while it starts, and after the removal of half-written files later."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

STOPPED = 143  # exit status of a program that SIGTERM ended
INTERRUPTED = 130  # exit status of a program that Ctrl-C ended
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped"}


def end_at_once() -> None:
    """Lets Ctrl-C and SIGTERM end the process without an exception, which an import in progress could swallow."""
    for number in _WORDS:
        signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, f"siglip-jax: {_WORDS[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raises `KeyboardInterrupt` for Ctrl-C and `SystemExit` for SIGTERM, so that half-written files are removed.

    Python ignores exceptions of destructors and of callbacks of the garbage collector, which jax has. A signal that
    arrives during one is repeated.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        yield
        return
    ignored = sys.unraisablehook

    def raise_it(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(STOPPED)

    def repeat(unraisable: Any) -> None:
        if unraisable.exc_type not in (KeyboardInterrupt, SystemExit):
            ignored(unraisable)
            return
        number = signal.SIGINT if unraisable.exc_type is KeyboardInterrupt else signal.SIGTERM
        main = threading.main_thread().ident or 0
        threading.Timer(0.01, signal.pthread_kill, (main, number)).start()

    # Processes that have joined stop together: there jax handles SIGTERM, which stops all of them after the same step.
    jax: Any = sys.modules.get("jax")
    joined = jax is not None and jax.distributed.is_initialized()
    numbers = [number for number in _WORDS if number == signal.SIGINT or not joined]
    before = {number: signal.signal(number, raise_it) for number in numbers}
    sys.unraisablehook = repeat
    try:
        yield
    finally:
        sys.unraisablehook = ignored
        for number, handler in before.items():
            signal.signal(number, handler)
