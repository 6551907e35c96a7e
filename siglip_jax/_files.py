"""Reading and writing of small files and directories: one clear error each, and nothing half-written."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def user_cache() -> Path:
    """Returns the folder for what can be made again: `siglip_jax` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "siglip_jax"


def read_json(path: Path, need: str) -> dict[str, Any]:
    """Returns the JSON object in a file; `need` says in the error why it has to be there.

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: if it does not hold a JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {need}")
    try:
        d = json.loads(inside(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a JSON object, found text that is not JSON ({error})") from error
    if not isinstance(d, dict):
        raise ValueError(f"{path}: expected a JSON object, found a {type(d).__name__}")
    return d


def read_lines(path: str | os.PathLike[str], what: str) -> tuple[str, ...]:
    """Returns the lines of a text file, without blanks around them and without empty ones.

    Raises:
      FileNotFoundError: if it is not there.
      ValueError: if it is not text in UTF-8, or has no lines; the message says that it was to hold `what`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a text file of {what}, one a line, found no such file")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected a text file of {what} in UTF-8, found other bytes") from None
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise ValueError(f"{path}: expected {what}, one a line, found an empty file")
    return found


def inside(path: Path) -> Path:
    """Returns `path` if it stays in its directory; a link may lead to the blobs of the same Hub repository only.

    Raises:
      ValueError: if it is a link to somewhere else.
    """
    if not path.is_symlink():
        return path
    target, home = path.resolve(), path.parent.resolve()
    homes = [home]
    if home.parent.name == "snapshots":  # the Hub's cache: snapshots/REVISION/FILE -> blobs/HASH
        homes.append(home.parent.parent / "blobs")
    if not any(target.is_relative_to(h) for h in homes):
        raise ValueError(f"{path}: expected a file of this directory, found a link out of it; copy the file instead")
    return path


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling to write to; it takes the place of `path` only if the block ends well."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        aside.chmod(0o666 & ~_umask())  # mkstemp's files are private; this one is meant to be shared
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def directory_written_aside(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling to fill; it becomes the directory `path` only if the block ends well.

    Raises:
      FileExistsError: if there is something at `path` already.
    """
    if path.exists():
        raise FileExistsError(f"{path}: expected no such file or directory yet, found one; name another")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield aside
        aside.chmod(0o777 & ~_umask())
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that a reader sees the old contents or the new, never a part."""
    with written_aside(path) as aside:
        aside.write_bytes(data)
