"""Reading and writing of small files: one-line errors, and atomic replacement of files and directories."""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from siglip_jax._checks import reason
from siglip_jax._lock import create_held, remove_unless_held

_TEMPORARY = re.compile(r"\.(.+)\.[^.]+\.tmp", re.DOTALL)  # names of the siblings of `written_aside`

# From here on Pillow warns of a decompression bomb; an image with transparency takes 1.4 GB while it is decoded.
MAX_PIXELS = 89_478_485  # of an encoded image


def user_cache() -> Path:
    """Returns the directory for data that can be recomputed: `siglip_jax` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "siglip_jax"


def folder_of(path: Path) -> Path:
    """Returns the directory of a checkpoint: `path`, or that of a file, never "." where a message would show it."""
    return path if path.is_dir() else path.parent if path.parent.parts else Path.cwd()


def output_path(path: str | os.PathLike[str], what: str = "out") -> Path:
    """Returns the path that a job writes to, with `~` expanded.

    Args:
      path: path that the user gave.
      what: name of the argument, for the error: "out", "--out".

    Raises:
      ValueError: if it is a URL, which would become a folder of that name on this disk.
    """
    text = os.fspath(path)
    url = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+", text)  # one slash is left where a Path was made of the URL
    if url is not None:
        raise ValueError(
            f"{what} must be a path on this machine, got the URL {url[1]}://{text[url.end() :]}; write to a local or"
            " mounted directory and copy it from there"
        )
    return Path(os.path.expanduser(text))


def check_space(directory: Path, size: int) -> None:
    """Checks that a disk has room, for writers that report a full one in hundreds of lines.

    Args:
      directory: existing directory on the disk.
      size: number of bytes to write.

    Raises:
      OSError: if fewer bytes are free.
    """
    free = shutil.disk_usage(directory).free
    if size > free:
        reason = f"the disk must have {size:,} bytes free, got {free:,}; make room or write to another disk"
        raise OSError(errno.ENOSPC, reason, os.fspath(directory))


_MOST_JSON = 64 << 20  # bytes
_MOST_CONTAINERS = 500_000  # lists and objects; each takes up to 80 bytes of memory for 2 bytes of the file


def parse_json(data: bytes) -> Any:
    """Parses JSON of an unknown writer, in memory of the order of its size.

    Args:
      data: the text in UTF-8.

    Raises:
      ValueError: if it is not JSON, is nested too deeply, or holds more lists and objects than any file read here.
    """
    if (count := data.count(b"[") + data.count(b"{")) > _MOST_CONTAINERS:
        raise ValueError(f"{count} lists and objects, more than {_MOST_CONTAINERS}")
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError(str(error)) from error


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the name of a file before the message of a `ValueError` that lacks it.

    Args:
      path: the file whose contents the block checks.
    """
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def read_json(path: Path, need: str, most: int = _MOST_JSON) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Args:
      path: the file.
      need: why the file is needed, for the error of a missing one: "it lists the shards".
      most: largest size of the file in bytes.

    Returns:
      The JSON object.

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: if it does not hold a JSON object, is larger than `most`, or is a link out of its directory.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {need}")
    if (size := inside(path).stat().st_size) > most:
        raise ValueError(f"{path}: the file must have at most {most} bytes, got {size}; get it again")
    try:
        d = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: the file must hold a JSON object, got invalid JSON ({reason(error)})") from error
    if not isinstance(d, dict):
        raise ValueError(f"{path}: the file must hold a JSON object, got a {type(d).__name__}")
    return d


def read_lines(path: str | os.PathLike[str], what: str) -> tuple[str, ...]:
    """Reads the lines of a text file, stripped and without empty ones.

    Args:
      path: the file, in UTF-8.
      what: content of the lines, for errors: "labels".

    Returns:
      The lines, at least one.

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: if it is not UTF-8, or has no lines.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; pass a text file of {what}, one per line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: {what} must be text in UTF-8, got other bytes; convert the file") from None
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise ValueError(f"{path}: the file must hold {what}, one per line, got an empty file")
    return found


def inside(path: Path, root: Path | None = None) -> Path:
    """Returns `path` unless it is a link out of its directory.

    Links to the blobs of the same repository in the Hub's cache are allowed.

    Args:
      path: path to check.
      root: directory that links may lead to; None: that of `path`.

    Returns:
      `path`, unresolved.

    Raises:
      ValueError: if it is a link to another place.
    """
    if not path.is_symlink():
        return path
    target, home = path.resolve(), (root or path.parent).resolve()
    homes = [home]
    if home.parent.name == "snapshots":  # the Hub's cache: snapshots/REVISION/FILE -> blobs/HASH
        homes.append(home.parent.parent / "blobs")
    if not any(target.is_relative_to(h) for h in homes):
        raise ValueError(f"{path}: the file must be in this directory, got a link out of it; copy the file instead")
    return path


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling to write to, which replaces `path` when the block ends without an error.

    Siblings that killed writers of the same file left are removed first.
    """
    with _aside(path) as aside:
        mode = aside.stat().st_mode & 0o777
        yield aside
        aside.chmod(mode)  # a writer may have replaced the file
        os.replace(aside, path)


def refuse_existing(path: Path) -> None:
    """Raises a `FileExistsError` if a destination exists.

    Args:
      path: file or directory that is to be written.
    """
    if path.exists():
        raise FileExistsError(f"{path}: the destination must not exist yet, got an existing one; choose another")


@contextlib.contextmanager
def directory_written_aside(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling to fill, which is renamed to `path` when the block ends without an error.

    Siblings that killed writers of the same directory left are removed first.

    Raises:
      FileExistsError: if `path` exists.
    """
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _aside(path, directory=True) as aside:
        yield aside
        aside.rename(path)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling to fill, as `directory_written_aside` does; `path` may be an empty directory.

    Args:
      path: directory that is to be written.

    Raises:
      FileExistsError: if `path` exists and is not an empty directory.
    """
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        path.rmdir()
    with directory_written_aside(path) as aside:
        yield aside


@contextlib.contextmanager
def _aside(path: Path, *, directory: bool = False) -> Iterator[Path]:
    """Yields a new temporary sibling, which is locked, and removed at the end if it is still there."""
    remove_litter(path.parent, lambda name: name == path.name)
    while True:
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            handle = create_held(aside, directory=directory)
            break
        except FileExistsError:
            continue
        except OSError as error:
            if not isinstance(error, FileNotFoundError) or not path.parent.is_dir():
                error.filename = os.fspath(path)  # that of the sibling tells nobody anything
                raise
    try:
        yield aside
    except OSError as error:
        if error.errno is not None and error.filename is None:  # as where a disk is full
            error.filename = os.fspath(path)
        elif str(error.filename).startswith(os.fspath(aside)):
            error.filename = os.fspath(path) + str(error.filename)[len(os.fspath(aside)) :]
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True) if directory else aside.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def remove_litter(directory: Path, ours: Callable[[str], bool]) -> None:
    """Removes the temporary files that killed writers left in a directory; those of live ones stay.

    Args:
      directory: directory that `written_aside` or `directory_written_aside` wrote to.
      ours: whether the temporary files of a name may be removed.
    """
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found is not None and ours(found[1]):
                remove_unless_held(Path(entry.path))


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file atomically: a reader sees either the old contents or the new ones."""
    with written_aside(path) as aside:
        aside.write_bytes(data)
