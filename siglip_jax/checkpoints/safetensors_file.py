"""Reading of a safetensors file as lazy views, and a writer that holds one tensor in memory at a time.

The library `safetensors` checks every header. Its reader is not used because it copies, nor its writer because that
takes all tensors at once and writes the buffer of a transposed view as if it were in C order.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from siglip_jax._checks import reason, shown
from siglip_jax._files import parse_json
from siglip_jax.checkpoints.mapped import MappedFile, release
from siglip_jax.checkpoints.table import NewTensor, StoredTensor

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "BOOL": np.dtype(np.bool_),
}
_MOST_HEADER = 16 << 20  # bytes; 100,000 tensors
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Reads the header of a safetensors file.

    Args:
      path: the file.

    Returns:
      The tensors by name.

    Raises:
      ValueError: if the file is truncated, corrupt or not a safetensors file.
    """
    with path.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
    try:
        # The library would read a header of 100 MB, which takes ten times that in memory.
        if length > _MOST_HEADER and path.stat().st_size > length:
            raise ValueError(f"its header must have at most {_MOST_HEADER} bytes, got {length}")
        with safetensors.safe_open(path, framework="numpy"):
            pass  # the library has checked lengths, offsets and shapes
        file = MappedFile(path)
        start = 8 + int.from_bytes(file.bytes(0, 8), "little")
        return dict(_tensors(file, start))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{path}: the file must be a safetensors file, got a truncated or corrupt one ({reason(error)}); get it"
            " again"
        ) from error


def _tensors(file: MappedFile, start: int) -> Iterator[tuple[str, StoredTensor]]:
    for key, entry in parse_json(file.bytes(8, start)).items():
        if key == "__metadata__":
            continue
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:  # such as quantized dtypes: listed, but never read
            dtype = np.dtype(f"V{(end - begin) // max(1, math.prod(shape)) or 1}")
        elif math.prod(shape) * dtype.itemsize != end - begin or start + end > file.size:
            raise ValueError(f"{shown(key)}: shape and offsets do not agree")

        def view(at: int = start + begin, dtype: np.dtype = dtype, shape: tuple[int, ...] = shape) -> np.ndarray:
            return file.array(at, dtype, shape)

        yield key, StoredTensor(file.path, shape, dtype, view)


def write_safetensors(path: Path, tensors: Mapping[str, NewTensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file with the same bytes as the library.

    Args:
      path: file to write.
      tensors: tensors by name; stored by decreasing width of the dtype, then by name.
      metadata: texts by name, stored in the header.

    Raises:
      ValueError: if the format has no name for a dtype.
    """
    if wrong := [f"{key}: {t.dtype}" for key, t in tensors.items() if t.dtype not in _NAMES]:
        raise ValueError(f"dtypes must be among {', '.join(DTYPES)}, got {', '.join(wrong[:4])}; convert these tensors")
    order = sorted(tensors, key=lambda key: (-_rank(tensors[key].dtype), key))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for key in order:
        tensor = tensors[key]
        place = [offset, offset := offset + tensor.nbytes]
        header[key] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            array = tensors[key].make()
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            release(array)


def replace_tensors(path: Path, tensors: Mapping[str, NewTensor]) -> None:
    """Overwrites some tensors of a safetensors file in place; its header and its other tensors keep their bytes.

    Args:
      path: the file, to which nobody else has access yet.
      tensors: new tensors by name, in the shapes and dtypes of the old ones.

    Raises:
      ValueError: if the header lacks a tensor, or has it in another size.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(length))
        for key, tensor in tensors.items():
            begin, end = header.get(key, {}).get("data_offsets", (0, 0))
            if end - begin != tensor.nbytes:
                raise ValueError(f"{path}: {shown(key)} must have {tensor.nbytes} bytes, got {end - begin}; try again")
            file.seek(8 + length + begin)
            file.write(np.ascontiguousarray(tensor.make()).reshape(-1).view(np.uint8).data)


def _rank(dtype: np.dtype) -> int:
    return ["BOOL", "U8", "I8", "F8_E4M3", "I16", "F16", "BF16", "I32", "F32", "F64", "I64"].index(_NAMES[dtype])
