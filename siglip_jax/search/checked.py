"""Files of a collection are compared with their checksums before they are used: once for each content.

The size and the modification time of a file stand for its content. What was compared is remembered in the user's cache
directory, so that the next process need not read gigabytes again.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from siglip_jax._files import inside, user_cache

_SETTLED = 2 * 10**9  # nanoseconds; a younger file may change again without another time


class Checked:
    """The files of a directory that are known to have the contents that their checksums say."""

    def __init__(self, directory: Path) -> None:
        """Reads what earlier processes have compared.

        Args:
          directory: directory of the files.
        """
        name = hashlib.sha256(os.fsencode(os.path.abspath(directory))).hexdigest()
        self._cache = user_cache() / "checked" / name[:32]
        self._known: set[str] = set()
        with contextlib.suppress(OSError, UnicodeDecodeError):
            self._known.update(self._cache.read_text("utf-8").splitlines())

    def check(
        self, path: Path, expected: object, also: Callable[[], None] | None = None, *, advice: str = "embed again"
    ) -> None:
        """Compares a file with its checksum, unless that was done for the same content.

        Args:
          path: file in the directory.
          expected: SHA-256 of the file, as it was recorded.
          also: further check of the contents, which raises; None: there is none.
          advice: what to do about a changed file, for the error.

        Raises:
          OSError: if the file cannot be read.
          ValueError: if the file was changed, or is a link out of its directory.
        """
        state = _state(path)
        entry = f"{path.name} {state} {expected}"
        if entry in self._known:
            return
        found = sum_of(path)
        if found != expected:
            recorded = f"{expected!s:.16}"  # enough to identify it
            raise ValueError(f"{path}: the SHA-256 must be {recorded}, got {found:.16}: the file was changed; {advice}")
        if also is not None:
            also()
        if _state(path) != state or time.time_ns() - path.stat().st_mtime_ns < _SETTLED:
            return
        self._known.add(entry)
        with contextlib.suppress(OSError):
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            with self._cache.open("a", encoding="utf-8") as file:
                file.write(entry + "\n")


def sum_of(path: Path) -> str:
    """Returns the SHA-256 of a file, which must not be a link out of its directory."""
    with inside(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(path: Path) -> str:
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"
