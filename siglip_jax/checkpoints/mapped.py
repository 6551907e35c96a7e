"""Files as read-only memory maps: tensors come out as views, and their pages can be given back once they are copied."""

import mmap
import os
from pathlib import Path

import numpy as np
from jax.typing import DTypeLike


class MappedFile:
    """A file mapped into memory; nothing is read until a view of it is looked at.

    The map lives as long as a view does. Files are replaced by renaming here, so a map keeps seeing the old contents.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
        self.path = path

    def bytes(self, start: int, stop: int) -> bytes:
        """Returns a copy of a range of the file."""
        return self._map[start:stop]

    def array(self, offset: int, dtype: DTypeLike, shape: tuple[int, ...], fortran_order: bool = False) -> np.ndarray:
        """Returns a read-only view of an array that lies at `offset`, in C order unless said otherwise."""
        count = int(np.prod(shape, dtype=np.int64))
        flat = np.frombuffer(self._map, dtype, count, offset) if count else np.empty(0, dtype)
        return flat.reshape(shape, order="F" if fortran_order else "C")


def release(array: np.ndarray) -> None:
    """Gives the pages behind a view of a `MappedFile` back to the system; other arrays are left alone.

    What is looked at again is read again: call this when the array has been copied.
    """
    root = base = array
    while isinstance(base, np.ndarray):
        root, base = base, base.base
    if isinstance(base, memoryview):
        base = base.obj
    if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = root.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    base.madvise(mmap.MADV_DONTNEED, first, start + root.nbytes - first)
