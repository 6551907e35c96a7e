"""The two kinds of callbacks that long jobs take; each has one signature everywhere."""

from collections.abc import Callable

OnProgress = Callable[[int, int], object]
"""Called with (done, total), first with done=0; the unit (items, bytes, steps) is that of the job."""

OnUnreadable = Callable[[int, Exception], object]
"""Called with (index of the item, the error that reading it raised); the error's message names the item."""


class Counter:
    """Turns amounts into calls of an `OnProgress` callback.

    Attributes:
      done: sum of the amounts so far.
    """

    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        """Calls the callback with 0 done.

        Args:
          on_progress: callback; None: nothing is called.
          total: sum of all amounts.
        """
        self.done = 0
        self._on_progress, self._total = on_progress, total
        self.add(0)

    def add(self, amount: int) -> None:
        """Adds an amount and calls the callback.

        Args:
          amount: how much was done since the last call.
        """
        self.done += amount
        if self._on_progress is not None:
            self._on_progress(self.done, self._total)


def naming(name: str, error: Exception) -> Exception:
    """Returns an error whose message names an item.

    Args:
      name: name of the item.
      error: error that reading it raised.

    Returns:
      `error` itself if its message has the name in it, else a `ValueError` of the name and the message.
    """
    said = " ".join(str(error).split()) or type(error).__name__
    return error if name in said else ValueError(f"{name}: {said}")
