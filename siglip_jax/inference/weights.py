"""Parameters that come to the device part by part, each when it is first needed: a tower nobody uses costs nothing."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

Place = Callable[[Mapping[str, Any]], dict[str, Any]]


class Weights:
    """The parameters of a model by the names of its parts: `text_model`, `vision_model`, `logit_scale`, …"""

    def __init__(self, params: Mapping[str, Any], place: Place | None = None) -> None:
        """Takes parameters.

        Args:
          params: of all parts; of a checkpoint, views of its file.
          place: puts a part of them on the device; None where all are there.
        """
        self._waiting = dict(params) if place else {}
        self._placed = {} if place else dict(params)
        self._place = place
        self._lock = threading.Lock()

    def of(self, *names: str) -> dict[str, Any]:
        """Returns some parts, on the device.

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
        """Returns all parts, on the device: always the same dict, so that what is put into it is used."""
        self.of(*self._waiting)
        return self._placed
