"""Files of a data set: patterns in names, images that have to lie inside a folder, short reads at an offset."""

import functools
import glob
import itertools
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from siglip_jax.processing.images.loading import MAX_BYTES

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 1_000_000  # files that a pattern may stand for


def expanded(pattern: str) -> list[str]:
    """Returns the names that a pattern stands for: `a-{000..010}.tar`, `{train,test}.csv`, `shards/*.tar`.

    Raises:
      FileNotFoundError: if a `*` matches nothing.
      ValueError: for a range that runs backwards or is absurdly long.
    """
    parts = _BRACES.split(pattern)  # text, inside of braces, text, ...
    choices = [[part] if i % 2 == 0 else _choices(part, pattern) for i, part in enumerate(parts)]
    if functools.reduce(lambda count, part: count * len(part), choices, 1) > _MOST:
        raise ValueError(f"{pattern}: stands for more than {_MOST} files; name a folder instead")
    names = ["".join(combination) for combination in itertools.product(*choices)]
    if not any(character in pattern for character in "*?["):
        return names
    found = sorted(match for name in names for match in glob.glob(name))
    if not found:
        raise FileNotFoundError(f"{pattern}: expected files of such names, found none")
    return found


def _choices(inside: str, pattern: str) -> list[str]:
    match = _RANGE.fullmatch(inside)
    if match is None:
        return inside.split(",")
    first, last = map(int, match.groups())
    if first > last or last - first >= _MOST:
        raise ValueError(f"{pattern}: expected a range such as {{000..010}}, found {{{inside}}}")
    return [str(number).zfill(len(match[1])) for number in range(first, last + 1)]


def read_inside(root: str, relative: str, where: str) -> bytes:
    """Returns the bytes of a file below `root`, which is a real path; `where` begins every message.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the path leads out of the folder, directly or by a link, or is not a file of sensible size.
    """
    if "://" in relative:
        raise ValueError(f"{where}: expected the path of an image, found the URL {relative}; download it first")
    try:
        target = os.path.realpath(os.path.join(root, relative))
    except ValueError as error:  # a null byte
        raise ValueError(f"{where}: {relative!r} is not the path of a file ({error})") from None
    if not Path(target).is_relative_to(root):
        raise ValueError(f"{where}: {relative} leads out of {root}; copy the image into that folder")
    try:
        status = os.stat(target)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{where}: expected {relative} to be a file, found something else")
        if status.st_size > MAX_BYTES:
            raise ValueError(f"{where}: {relative} has {status.st_size} bytes, more than the {MAX_BYTES} allowed")
        with open(target, "rb") as file:
            return file.read(MAX_BYTES)
    except FileNotFoundError:
        raise FileNotFoundError(f"{where}: no such image as {relative} in {root}") from None
    except OSError as error:
        raise OSError(f"{where}: {relative} cannot be read ({error.strerror or error})") from error


class _Opened:
    """A file that is closed when nobody reads it any more, whichever thread that is."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # kept, as `os` goes first when Python ends
        if hasattr(self, "descriptor"):
            close(self.descriptor)


class OpenFiles:
    """Reads parts of many files from several threads; the last ones used stay open, in each process its own."""

    def __init__(self, paths: list[str], keep: int = 64) -> None:
        self.paths, self.keep = paths, keep
        self._opened = functools.lru_cache(keep)(_Opened)

    def __reduce__(self) -> tuple[type["OpenFiles"], tuple[list[str], int]]:
        return OpenFiles, (self.paths, self.keep)

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Returns `size` bytes of the file of that number.

        Raises:
          OSError: if it cannot be read.
          ValueError: if it has become shorter.
        """
        path = self.paths[number]
        file = self._opened(path)
        data = os.pread(file.descriptor, size, offset)
        while len(data) < size:
            more = os.pread(file.descriptor, size - len(data), offset + len(data))
            if not more:
                raise ValueError(f"{path}: ends at byte {offset + len(data)}, {offset + size} expected; it was changed")
            data += more
        return data
