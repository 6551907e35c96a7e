"""A line of progress on stderr for long calls of the library, on a terminal only."""

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Batch = TypeVar("Batch", bound=tuple)

PATIENCE = 2.0  # seconds before anything is shown
PAUSE = 0.2  # seconds between two lines

allowed = True  # the command line, which has bars of its own, sets it to False


def counted(batches: Iterable[Batch], of: object, what: str) -> Iterator[Batch]:
    """Yields batches and shows how many rows they had so far.

    Nothing is shown for the first two seconds, in threads other than the main one, or if stderr is not a terminal. The
    line is removed at the end.

    Args:
      batches: tuples of arrays, whose first axis has the rows.
      of: the items that make the rows; their number is shown if they have one.
      what: name of the items, in the plural.
    """
    if not allowed or threading.current_thread() is not threading.main_thread() or not sys.stderr.isatty():
        yield from batches
        return
    total = f" of {len(of):,}" if isinstance(of, Sized) else ""
    start = time.monotonic()
    done, due, shown = 0, start + PATIENCE, False
    try:
        for batch in batches:
            yield batch
            done += len(batch[0])
            if (now := time.monotonic()) >= due:
                print(
                    f"\r\x1b[K{what}: {done:,}{total}, {done / (now - start):,.1f}/s",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
                due, shown = now + PAUSE, True
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
