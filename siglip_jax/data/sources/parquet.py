"""One-time copies of Parquet files as Arrow: a row of Parquet cannot be read without its whole row group.

The copy holds only the images, captions, labels and boxes, takes as much disk as they do, and is stored in a cache
folder.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from siglip_jax._files import written_aside
from siglip_jax.data.columns import listed
from siglip_jax.data.sources.arrow_columns import Chosen, as_plain, merged, plain, refused

_ROWS = 64  # rows of a batch, whose images of many megabytes must stay below the limit of two gigabytes


def as_arrow(files: Sequence[str], chosen: Chosen, cache: Path) -> Path:
    """Returns the path of an Arrow file with the chosen columns of Parquet files, written if it does not exist yet.

    Names, sizes and modification times of the files identify the copy: if one of them changes, a new copy is made.

    Args:
      files: paths of the Parquet files, in the order of their rows.
      chosen: columns to copy.
      cache: folder that the copy is stored in.

    Raises:
      OSError: if the copy cannot be written.
      ValueError: if a file is not Parquet, the files differ in their columns, or the disk is too full.
    """
    states = [(os.path.realpath(file), os.stat(file)) for file in files]
    key = repr([chosen.names, [(name, status.st_size, status.st_mtime_ns) for name, status in states]])
    target = cache / f"{Path(files[0]).stem[:40]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.arrow"
    if target.is_file():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    needed, free = sum(status.st_size for _, status in states), shutil.disk_usage(cache).free
    if needed > free:
        raise ValueError(
            f"{cache}: free space must be {needed:,} bytes for a copy of the Parquet files, got {free:,}; "
            "choose another folder with cache"
        )
    for file in files:
        _check(file, chosen, files[0])
    with (
        written_aside(target) as aside,
        pa.OSFile(os.fspath(aside), "wb") as out,
        pa.ipc.new_file(out, chosen.schema) as writer,
    ):
        for file in files:
            for batch in _batches(file, chosen):
                writer.write_batch(batch)
    return target


def _batches(file: str, chosen: Chosen) -> Iterator[pa.RecordBatch]:
    """Yields the chosen columns of a file, with the types that they are stored as."""
    with refused(file, "Parquet"):
        for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=chosen.names, use_threads=False):
            batch.validate(full=True)
            fields = [chosen.schema.field(name) for name in chosen.names]
            found = [as_plain(batch.column(field.name), field.type) for field in fields]
            yield pa.RecordBatch.from_arrays(found, schema=chosen.schema)


def read_schemas(files: Sequence[str]) -> pa.Schema:
    """Returns names and types of the columns of Parquet files, see `merged`.

    Raises:
      ValueError: if one is not a Parquet file.
    """
    return merged([read_schema(file) for file in files])


def read_schema(file: str) -> pa.Schema:
    """Returns names and types of the columns of a Parquet file.

    Raises:
      ValueError: if it is not a Parquet file.
    """
    try:
        with refused(file, "Parquet"):
            return pq.read_schema(file)
    except ValueError as error:
        if "magic bytes" not in str(error) and "too small" not in str(error) and "is 0 bytes" not in str(error):
            raise
        raise ValueError(f"{file}: the file must be a Parquet file, got something else") from None


def _check(file: str, chosen: Chosen, first: str) -> None:
    """Raises a `ValueError` unless a file has the chosen columns with their types."""
    schema = read_schema(file)
    if missing := [name for name in chosen.names if name not in schema.names]:
        raise ValueError(f"{file}: columns must include {missing[0]!r}, got {listed(schema.names)}")
    own = [schema.field(name) for name in chosen.names]
    if any(plain(field.type) not in (chosen.schema.field(field.name).type, pa.null()) for field in own):
        types = ", ".join(f"{field.name} ({field.type})" for field in own)
        raise ValueError(f"{file}: columns must be those of {first}, got {types}")
