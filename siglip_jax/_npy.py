"""Reading of .npy headers and files; nothing is unpickled, and any number of threads may read at once.

`numpy.load` parses headers with `ast.literal_eval`, which fails at random when several threads parse on Python 3.11
("AST constructor recursion depth mismatch"). Headers are matched with a pattern here instead, and what a header claims
is compared with the size of the file before anything is mapped or allocated.
"""

import math
import os
import re
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from siglip_jax._checks import shown

_MAGIC = b"\x93NUMPY"
_MOST_HEADER = 65_536  # bytes; those of numpy have 118
_HEADER = re.compile(
    r"\{ *'descr': *'([<>|=]?[A-Za-z]\d*)', *'fortran_order': *(True|False), *'shape': *\(([\dL ,]*)\),? *\}\s*"
)


class ObjectsError(ValueError):
    """Raised for arrays of pickled objects."""


class Header(NamedTuple):
    """The header of a .npy file.

    Attributes:
      shape: shape of the array.
      fortran_order: whether the array is stored in Fortran order.
      dtype: dtype of the array as stored, whatever its byte order.
    """

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(stream: BinaryIO | Any) -> Header:
    """Reads the header of a .npy file and leaves the stream at the first byte of the array.

    Args:
      stream: binary stream at the start of the file.

    Raises:
      ObjectsError: if the array holds pickled objects.
      ValueError: if the header is cut off, damaged, or none that numpy writes for numbers.
    """
    start = stream.read(8)
    if start[:6] != _MAGIC:
        raise ValueError(f"a file of numpy begins with {_MAGIC!r}, got {start[:6]!r}")
    width = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}.get(start[6:])
    if width is None:
        raise ValueError(f"the version of the header must be 1, 2 or 3, got {start[6:]!r}")
    size = int.from_bytes(stream.read(width), "little")
    if size > _MOST_HEADER:
        raise ValueError(f"the header must have at most {_MOST_HEADER} bytes, got {size}")
    data = stream.read(size)
    if len(data) < size:
        raise ValueError(f"the header must have {size} bytes, got {len(data)}")
    text = data.decode("latin-1")
    if re.search(r"'descr': *'\|?O\d*'", text):
        raise ObjectsError("an array must hold numbers, got pickled objects, which are never opened")
    if (m := _HEADER.fullmatch(text)) is None:
        raise ValueError(f"the header must name a dtype of numbers, an order and a shape, got {shown(text.strip())}")
    try:
        dtype = np.dtype(m[1])
    except TypeError as error:
        raise ValueError(f"the header must name a dtype of numpy, got {shown(m[1])}") from error
    sizes = [part.strip().removesuffix("L") for part in m[3].split(",") if part.strip()]
    if len(sizes) > 32 or not all(part.isdigit() and len(part) < 20 for part in sizes):
        raise ValueError(f"the header must name a shape, got {shown(m[3])}")
    if dtype.itemsize == 0 or dtype.kind in "OmM":
        raise ValueError(f"the header must name a dtype of numbers, got {shown(m[1])}")
    return Header(tuple(map(int, sizes)), m[2] == "True", dtype)


def native(array: np.ndarray) -> np.ndarray:
    """Returns an array in the byte order of this machine, a copy if it has the other one."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def load_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Returns the array of a .npy file, memory-mapped and read-only.

    Args:
      path: the file.

    Returns:
      The array; one of the other byte order is copied.

    Raises:
      OSError: if the file cannot be opened.
      ValueError: if the file is truncated, corrupt or no .npy file of numbers.
    """
    path = Path(path)
    with path.open("rb") as stream:
        try:
            header = read_header(stream)
            start, size = stream.tell(), os.fstat(stream.fileno()).st_size
            if size - start != header.nbytes:
                raise ValueError(f"the array must have {header.nbytes} bytes, got {size - start}")
        except ValueError as error:
            raise ValueError(f"{path}: the file must be an array of numpy, got another ({error})") from error
    order = "F" if header.fortran_order else "C"
    if not header.nbytes:
        return np.empty(header.shape, header.dtype, order)
    return native(np.memmap(path, header.dtype, "r", start, header.shape, order))
