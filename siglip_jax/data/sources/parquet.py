"""Parquet made into an Arrow file once: a row of Parquet cannot be read without its whole group of rows.

The copy holds the images, captions and labels only and lies in a cache folder; it takes as much disk as they do.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from siglip_jax._files import written_aside
from siglip_jax.data.sources.arrow import Chosen

_ROWS = 64  # rows of a batch: images of many megabytes must not add up to the two gigabytes that one may hold


def as_arrow(files: Sequence[str], chosen: Chosen, cache: Path) -> Path:
    """Returns the Arrow file with the chosen columns of Parquet files, which is written if it is not there yet.

    It is known by names, sizes and times of the files: where one changes, a new copy is made.

    Raises:
      OSError: if it cannot be written.
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
        raise ValueError(f"{cache}: {needed:,} bytes are needed for a copy of the Parquet files, {free:,} are free")
    schema = _schema(files[0], chosen.names)
    with (
        written_aside(target) as aside,
        pa.OSFile(os.fspath(aside), "wb") as out,
        pa.ipc.new_file(out, schema) as writer,
    ):
        for file in files:
            if not _schema(file, chosen.names).equals(schema):
                raise ValueError(f"{file}: expected the columns of {files[0]}, found {_schema(file, chosen.names)}")
            for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=chosen.names, use_threads=False):
                writer.write_batch(batch)
    return target


def read_schema(file: str) -> pa.Schema:
    """Returns the columns of a Parquet file.

    Raises:
      ValueError: if it is not one.
    """
    try:
        return pq.read_schema(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: expected a Parquet file, found something else ({error})") from None


def _schema(file: str, names: Sequence[str]) -> pa.Schema:
    schema = read_schema(file)
    if missing := [name for name in names if name not in schema.names]:
        raise ValueError(f"{file}: expected the column {missing[0]!r}, found {', '.join(schema.names)}")
    return pa.schema([schema.field(name) for name in names], schema.metadata)
