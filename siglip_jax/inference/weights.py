"""Lazy parameters: each tower is placed on the device when it is first used, so an unused tower costs nothing."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

Place = Callable[[Mapping[str, Any]], dict[str, Any]]


class Weights:
    """The parameters of a model by top-level name: `text_model`, `vision_model`, `logit_scale`, ..."""

    def __init__(self, params: Mapping[str, Any], place: Place | None = None) -> None:
        """Keeps the parameters; nothing is placed yet.

        Args:
          params: nested dict of all parameters; those of a checkpoint are views of its memory-mapped file.
          place: function that places a part of them on the device; None: all are on it already.
        """
        self._waiting = dict(params) if place else {}
        self._placed = {} if place else dict(params)
        self._place = place
        self._lock = threading.Lock()

    def of(self, *names: str) -> dict[str, Any]:
        """Returns the named parts, after placing those that are not on the device yet.

        Args:
          *names: top-level names of parameters.

        Raises:
          ValueError: if the file they are read from is damaged.
        """
        with self._lock:
            for name in names:
                if self._place and name in self._waiting:
                    self._placed |= self._place({name: self._waiting[name]})
                    del self._waiting[name]
        return {name: self._placed[name] for name in names}

    def all(self) -> dict[str, Any]:
        """Returns all parts on the device, always as the same dict, so that changes to it take effect."""
        self.of(*self._waiting)
        return self._placed
