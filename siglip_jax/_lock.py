"""Locks that end with their process, however it ends: of a place in use, and of files that are being written.

They are `flock` locks, which the kernel releases when the holder is killed; most network file systems share them
between hosts. Where the system or the file system has none (Windows, some FUSE mounts), nothing is locked and nothing
is refused.
"""

import contextlib
import errno
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_held: set[int] = set()  # handles of `locked`


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds a lock file, which names this process and its host; the file is removed when the block ends.

    A lock file that a killed process left is taken over.

    Args:
      path: the lock file; its directory exists.
      what: what is locked, for the error: "a training run", "share 3/4 of a collection".

    Raises:
      BlockingIOError: if another process, or another call in this one, holds the lock; the message names it.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(handle, path, what)
            if _is_at(path, handle):
                break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the holder before removed the file after it was opened here
    _held.add(handle)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
        yield
    finally:
        if handle in _held:  # not in a forked child
            _held.discard(handle)
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(handle)


def check_free(path: Path, what: str) -> None:
    """Checks that nobody holds a lock file.

    Args:
      path: the lock file, which need not exist.
      what: what it locks, for the error.

    Raises:
      BlockingIOError: if a process holds the lock; the message names it.
    """
    with contextlib.suppress(FileNotFoundError):
        handle = os.open(path, os.O_RDWR)
        try:
            _take(handle, path, what)
        finally:
            os.close(handle)


def create_held(path: Path, *, directory: bool = False) -> int | None:
    """Creates an empty file or directory, which `remove_unless_held` leaves alone until its handle is closed.

    Args:
      path: what to create, with the permissions that are usual for this process.
      directory: whether to create a directory.

    Returns:
      The handle; None on a system without locks.

    Raises:
      FileExistsError: if the path exists.
      FileNotFoundError: if its directory does not exist, or `remove_unless_held` removed it before it was locked.
    """
    if directory:
        path.mkdir()
    else:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDONLY)
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)
    if not _is_at(path, handle):
        os.close(handle)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    return handle


def remove_unless_held(path: Path) -> None:
    """Removes a file or directory whose writer was killed; leaves it if that cannot be known.

    Args:
      path: file or directory that `create_held` created, in this process or another.
    """
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            if _lock(handle) and _is_at(path, handle):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        finally:
            os.close(handle)


def _take(handle: int, path: Path, what: str) -> None:
    """Locks an open file, or raises `BlockingIOError` with the holder that it names."""
    if _lock(handle) is not False:
        return
    holder = re.fullmatch(rb"(\d+) ([\w.-]+)\n", os.pread(handle, 300, 0))
    who = "another one" if holder is None else f"process {holder[1].decode()} on {holder[2].decode()}"
    raise BlockingIOError(
        f"{path.parent}: {what} must be written by one process at a time, got {who} at work; wait for it to end, or"
        " choose another directory"
    )


def _lock(handle: int) -> bool | None:
    """Locks an open file without waiting: returns whether it is locked now, None if there are no locks here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(path: Path, handle: int) -> bool:
    """Returns whether an open file or directory is still the one at a path."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(handle))
    except FileNotFoundError:
        return False


def _leave_to_parent() -> None:
    """Closes the locks in a forked child, which would otherwise hold them after the parent was killed."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
