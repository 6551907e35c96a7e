"""The calls of a `Batcher`: their futures, and their items on the way to the device."""

import concurrent.futures
import contextlib
import dataclasses
import threading
from typing import Any

import numpy as np

from siglip_jax.inference.stream import Arrays


class _Future(concurrent.futures.Future):
    """A future whose cancellation is final at once, so that `concurrent.futures.wait` does not wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self._notified = threading.Lock()

    def cancel(self) -> bool:
        """See `concurrent.futures.Future`."""
        cancelled = super().cancel()
        if cancelled and self._notified.acquire(blocking=False):  # by the first call only
            self.set_running_or_notify_cancel()
        return cancelled


class Call:
    """The future of one call and the embeddings collected for it; only the device's thread writes them."""

    def __init__(self, rows: int, width: int) -> None:
        self.future: concurrent.futures.Future = _Future()
        self._embeds, self._missing = np.empty((rows, width), np.float32), rows
        if not rows:
            self.future.set_result(self._embeds)

    def put(self, position: int, embed: np.ndarray) -> None:
        """Stores the embedding of one item and completes the future with the last."""
        self._embeds[position] = embed
        self._missing -= 1
        if not self._missing:
            with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled
                self.future.set_result(self._embeds)

    def fail(self, error: BaseException) -> None:
        """Completes the future with an error, unless it is done already."""
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled, or failed already
            self.future.set_exception(error)


@dataclasses.dataclass
class Row:
    """An item of a call, first as it was given, then prepared."""

    call: Call
    position: int
    item: Any
    arrays: Arrays = ()
    since: float = 0.0  # when it became ready, on the monotonic clock
    waits: bool = True  # whether `Batcher.waiting` counts it
