"""Reading of an .npz file as lazy views, and a writer that holds one array in memory at a time.

`numpy.load` copies every array and can unpickle; here uncompressed arrays are memory-mapped, and arrays of objects
raise an error. Mirrors `npload` and `recover_dtype` of big_vision for bfloat16, which numpy writes as raw two-byte
records.
"""

import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from siglip_jax._checks import reason, shown
from siglip_jax._files import parse_json
from siglip_jax._npy import ObjectsError, native, read_header
from siglip_jax.checkpoints.mapped import MappedFile, release
from siglip_jax.checkpoints.table import NewTensor, StoredTensor

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_LOCAL_HEADER = 30  # bytes of the local header of a zip member before its name
_MOST_EXPANSION = 4  # weights hardly compress; a larger factor is an archive made to exhaust the memory


def read_npz(path: Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Reads the headers of an .npz file.

    Args:
      path: the file.

    Returns:
      The arrays by name, and the JSON object in the comment of the archive ({} if there is none).

    Raises:
      ValueError: if the file is truncated, corrupt or not an .npz file, or holds pickled objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = {member.filename for member in members}
            total, size = sum(member.file_size for member in members), path.stat().st_size
            if len(names) < len(members) or total > _MOST_EXPANSION * size:
                raise ValueError(f"{len(members)} members, {len(names)} names, {total} bytes unpacked from {size}")
            file = MappedFile(path)
            comment = parse_json(archive.comment) if archive.comment.startswith(b"{") else {}
            return {m.filename.removesuffix(".npy"): _tensor(archive, m, file) for m in members}, comment
    except ObjectsError as error:
        raise ValueError(f"{path}: {error}") from error
    except (*_DAMAGES, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the file cannot be opened; an error without a file name concerns an offset in the archive
        raise ValueError(_damaged(path, error)) from error


# The errors of zipfile, numpy's header parser and json for files that were not written by numpy.
_DAMAGES = (
    zipfile.BadZipFile,
    zlib.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,  # RecursionError and NotImplementedError too
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)


def _tensor(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: MappedFile) -> StoredTensor:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{shown(member.filename)}: compression {member.compress_type}, which numpy does not write")
    with archive.open(member) as stream:
        try:
            header = read_header(stream)
        except ValueError as error:
            raise type(error)(f"{shown(member.filename)}: {error}") from error
        skipped = stream.tell()
    shape, fortran_order, dtype = header
    if dtype == np.dtype("V2"):
        dtype = _BFLOAT16
    if header.nbytes != member.file_size - skipped:
        raise ValueError(
            f"{shown(member.filename)}: shape {shown(shape)} and {member.file_size - skipped} bytes do not agree"
        )
    if member.compress_type == zipfile.ZIP_STORED:
        local = file.bytes(member.header_offset, member.header_offset + _LOCAL_HEADER)
        start = member.header_offset + _LOCAL_HEADER + sum(int.from_bytes(local[i : i + 2], "little") for i in (26, 28))
        if start + member.file_size > file.size:
            raise ValueError(f"{shown(member.filename)} ends beyond the file")

        def view() -> np.ndarray:
            return native(file.array(start + skipped, dtype, shape, fortran_order))

    else:

        def view() -> np.ndarray:
            try:
                with zipfile.ZipFile(file.path) as archive, archive.open(member) as stream:
                    data = stream.read(member.file_size)[skipped:]
            except _DAMAGES as error:  # the checksum is verified only now
                raise ValueError(_damaged(file.path, error)) from error
            return native(np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C"))

    return StoredTensor(file.path, shape, dtype.newbyteorder("="), view)


def _damaged(path: Path, error: Exception) -> str:
    return f"{path}: the file must be an .npz file, got a truncated or corrupt one ({reason(error)}); get it again"


def write_npz(path: Path, tensors: Mapping[str, NewTensor], comment: str) -> None:
    """Writes an uncompressed .npz file, as `numpy.savez` does.

    Args:
      path: file to write.
      tensors: arrays by name, in the order in which they are written.
      comment: comment of the archive, at most 65,535 bytes.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for key, tensor in tensors.items():
            array = tensor.make()
            with archive.open(f"{key}.npy", "w", force_zip64=True) as stream:
                npy.write_array(stream, np.ascontiguousarray(array).reshape(tensor.shape), allow_pickle=False)
            release(array)
        archive.comment = comment.encode()
