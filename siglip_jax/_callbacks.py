"""The two callbacks of long jobs; each has the same signature everywhere."""

from collections.abc import Callable

OnProgress = Callable[[int, int], object]
"""Called with (done, total), first with done=0; the job determines the unit: items, bytes or steps."""

OnUnreadable = Callable[[int, Exception], object]
"""Called with (index of the item, error raised by reading it); the message of the error names the item."""


class Counter:
    """Sums amounts and reports the sum to an `OnProgress` callback.

    Attributes:
      done: sum of the amounts so far.
    """

    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        """Calls the callback with 0 done.

        Args:
          on_progress: callback; None: no calls.
          total: sum of all amounts at the end.
        """
        self.done = 0
        self._on_progress, self._total = on_progress, total
        self.add(0)

    def add(self, amount: int) -> None:
        """Adds an amount and calls the callback.

        Args:
          amount: amount done since the last call.
        """
        self.done += amount
        if self._on_progress is not None:
            self._on_progress(self.done, self._total)


def naming(name: str, error: Exception) -> Exception:
    """Returns an error whose message names an item.

    Args:
      name: name of the item.
      error: error raised by reading the item.

    Returns:
      `error` itself if its message contains the name, else a `ValueError` with the name before the message.
    """
    message = " ".join(str(error).split()) or type(error).__name__
    return error if name in message else ValueError(f"{name}: {message.removeprefix('bytes: ')}")
