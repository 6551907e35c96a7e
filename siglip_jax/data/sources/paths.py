"""Files of a data set: patterns of names, paths that must be inside a folder, reads at an offset."""

import functools
import glob
import itertools
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from siglip_jax.data.columns import whole
from siglip_jax.processing.images.loading import MAX_BYTES

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 1_000_000  # files that a pattern may match


def expanded(pattern: str) -> list[str]:
    """Returns the names that a pattern matches: `a-{000..010}.tar`, `{train,test}.csv`, `shards/*.tar`.

    Raises:
      FileNotFoundError: if a `*` matches nothing.
      ValueError: if a range is descending, or the pattern stands for more than 1,000,000 files.
    """
    parts = _BRACES.split(pattern)  # text, content of braces, text, ...
    choices = [[part] if i % 2 == 0 else _choices(part, pattern) for i, part in enumerate(parts)]
    if functools.reduce(lambda count, part: count * len(part), choices, 1) > _MOST:
        raise ValueError(f"{pattern}: a pattern must match at most {_MOST} files, got more; pass a folder instead")
    names = ["".join(combination) for combination in itertools.product(*choices)]
    if not any(character in pattern for character in "*?["):
        return names
    found = sorted(match for name in names for match in glob.glob(name))
    if not found:
        raise FileNotFoundError(f"{pattern}: a pattern must match one file or more, got none")
    return found


def _choices(inside: str, pattern: str) -> list[str]:
    match = _RANGE.fullmatch(inside)
    if match is None:
        return inside.split(",")
    first, last = map(int, match.groups())
    if first > last or last - first >= _MOST:
        raise ValueError(f"{pattern}: a range must be ascending, such as {{000..010}}, got {{{inside}}}")
    return [str(number).zfill(len(match[1])) for number in range(first, last + 1)]


def name_bytes(name: str) -> bytes:
    """Returns the name of a file as bytes, for columns of Arrow, which hold no text but UTF-8.

    Args:
      name: name in which surrogates stand for bytes that are not UTF-8 (surrogateescape), as Python and JSON have them;
        other surrogates, which no file name has, are replaced.
    """
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return whole(name).encode()


def name_of(data: bytes) -> str:
    """Returns the name that `name_bytes` made bytes of."""
    return data.decode("utf-8", "surrogateescape")


def path_inside(relative: str, folder: str, root: str, where: str) -> str:
    """Returns the path of a file that a data set names; a path that leads out of a folder is refused.

    Symbolic links in the folder are followed: they are the user's own, unlike the paths in a data set.

    Args:
      relative: path of the file: relative to `folder` or else to `root`, or absolute.
      folder: absolute path of the folder of the data set.
      root: absolute path of the folder that the file must be in.
      where: name of the example; every message begins with it.

    Raises:
      ValueError: if the path leads out of `root`, or is a URL.
    """
    said = _shortened(relative)
    if "://" in relative:
        raise ValueError(f"{where}: an image must be the path of a file, got the URL {said}; download it first")
    if "\0" in relative:
        raise ValueError(f"{where}: an image must be the path of a file, got {said!r} with a null byte")
    # Normalised before it is used: `link/..` would be the parent of the link's target.
    tried = [os.path.normpath(os.path.join(base, relative)) for base in dict.fromkeys((folder, root))]
    homes = (root, os.path.realpath(root))
    inside = [path for path in tried if any(Path(path).is_relative_to(home) for home in homes)]
    if not inside:
        raise ValueError(
            f"{where}: an image must be inside {root}, got {said}, which leads out of it; name the folder that"
            " holds the images with root (--root DIR)"
        )
    return next(filter(os.path.exists, inside), inside[0])


def file_named(relative: str, folder: str, root: str) -> tuple[str, str]:
    """Returns a name that a data set has and the path of its file; no path where reading the example is an error.

    Args:
      relative: path of the file, as `path_inside` takes it.
      folder: absolute path of the folder of the data set.
      root: absolute path of the folder that the file must be in.
    """
    try:
        return relative, path_inside(relative, folder, root, "")
    except ValueError:
        return relative, ""


def read_file(path: str, relative: str, where: str) -> bytes:
    """Returns the bytes of a file of a data set.

    Args:
      path: path of the file.
      relative: path of the file as the data set names it, for messages.
      where: name of the example; every message begins with it.

    Raises:
      FileNotFoundError: if the file does not exist.
      OSError: if the file is unreadable.
      ValueError: if it is not a regular file, or is larger than `MAX_BYTES`.
    """
    relative = _shortened(relative)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{where}: {relative} must be a regular file, got something else")
        if status.st_size > MAX_BYTES:
            raise ValueError(f"{where}: {relative} must have at most {MAX_BYTES} bytes, got {status.st_size}")
        with open(path, "rb") as file:
            return file.read(MAX_BYTES)
    except FileNotFoundError:
        raise FileNotFoundError(f"{where}: no such image as {relative}, got no file {_shortened(path)}") from None
    except OSError as error:
        raise OSError(f"{where}: {relative} cannot be read ({error.strerror or error})") from error


def _shortened(path: str, most: int = 100) -> str:
    """Returns a path for a message, without its middle if it is long."""
    return path if len(path) <= most else f"{path[: most // 2]}...{path[-most // 2 :]}"


def as_text(data: bytes, where: str, what: str) -> str:
    """Returns a text of a data set without white space around it.

    Args:
      data: bytes of the text in UTF-8.
      where: name of the example, for the message.
      what: "caption" or "label", for the message.

    Raises:
      ValueError: if it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{where}: the {what} must be text in UTF-8, got {data!r:.80}; convert it") from None


class _Opened:
    """An open file that closes itself when the last thread that reads it releases it."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    # The default argument is kept because `os` may already be gone when Python ends.
    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if hasattr(self, "descriptor"):
            close(self.descriptor)


class OpenFiles:
    """Reads ranges of bytes of many files from several threads; each process keeps the last used files open."""

    def __init__(self, paths: list[str], keep: int = 64) -> None:
        """Opens nothing yet.

        Args:
          paths: paths of the files.
          keep: how many files stay open.
        """
        self.paths, self.keep = paths, keep
        self._opened = functools.lru_cache(keep)(_Opened)

    def __reduce__(self) -> tuple[type["OpenFiles"], tuple[list[str], int]]:
        return OpenFiles, (self.paths, self.keep)

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Returns a range of bytes of a file.

        Args:
          number: index of the file in `paths`.
          offset: position of the first byte.
          size: number of bytes.

        Raises:
          OSError: if the file is unreadable.
          ValueError: if the file ends before the range does.
        """
        path = self.paths[number]
        file = self._opened(path)
        data = os.pread(file.descriptor, size, offset)
        while len(data) < size:
            more = os.pread(file.descriptor, size - len(data), offset + len(data))
            if not more:
                raise ValueError(
                    f"{path}: the file must have {offset + size} bytes, got {offset + len(data)}; "
                    "it was changed, so open the data set again"
                )
            data += more
        return data
