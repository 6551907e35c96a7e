"""Memory-mapped files: tensors are read-only views, and their pages can be released once the tensors are copied."""

import mmap
import os
from pathlib import Path

import numpy as np
from jax.typing import DTypeLike


class MappedFile:
    """A memory-mapped file; nothing is read before a view is accessed.

    The map stays open as long as a view exists. This package replaces files by renaming, so an open map keeps the old
    contents. Reading a view of a file that another program has cut off in place ends the process (SIGBUS); each access
    here compares the size first.

    Attributes:
      path: path of the file.
      size: size of the file in bytes.
    """

    def __init__(self, path: Path) -> None:
        """Maps a file.

        Args:
          path: path of the file.
        """
        with path.open("rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
        self.path = path

    def bytes(self, start: int, stop: int) -> bytes:
        """Returns a copy of the bytes from `start` to `stop`.

        Raises:
          ValueError: if the file was cut off since it was mapped.
        """
        self._check_size()
        return self._map[start:stop]

    def array(self, offset: int, dtype: DTypeLike, shape: tuple[int, ...], fortran_order: bool = False) -> np.ndarray:
        """Returns a read-only view of an array in the file.

        Args:
          offset: position of the first byte of the array.
          dtype: dtype of the array.
          shape: shape of the array.
          fortran_order: whether the array is stored in Fortran order instead of C order.

        Raises:
          ValueError: if the file was cut off since it was mapped.
        """
        self._check_size()
        count = int(np.prod(shape, dtype=np.int64))
        flat = np.frombuffer(self._map, dtype, count, offset) if count else np.empty(0, dtype)
        return flat.reshape(shape, order="F" if fortran_order else "C")

    def _check_size(self) -> None:
        if isinstance(self._map, mmap.mmap) and (size := self._map.size()) < self.size:
            raise ValueError(f"{self.path}: the file must keep its {self.size} bytes, got {size}; write it anew")


def release(array: np.ndarray) -> None:
    """Releases the memory pages of a view of a `MappedFile`; does nothing for other arrays.

    A later access reads the file again, so this is for arrays that have been copied.

    Args:
      array: any array.
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
