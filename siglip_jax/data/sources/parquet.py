"""One-time copies of Parquet files as Arrow: a row of Parquet cannot be read without its whole row group.

The copy holds only the images, captions and labels, takes as much disk as they do, and is stored in a cache folder.
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
from siglip_jax.data.sources.columns import listed

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
    schema = _schema(files[0], chosen.names)
    with (
        written_aside(target) as aside,
        pa.OSFile(os.fspath(aside), "wb") as out,
        pa.ipc.new_file(out, schema) as writer,
    ):
        for file in files:
            if not (own := _schema(file, chosen.names)).equals(schema):
                types = ", ".join(f"{field.name} ({field.type})" for field in own)
                raise ValueError(f"{file}: columns must be those of {files[0]}, got {types}")
            for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=chosen.names, use_threads=False):
                writer.write_batch(batch)
    return target


def read_schema(file: str) -> pa.Schema:
    """Returns names and types of the columns of a Parquet file.

    Raises:
      ValueError: if it is not a Parquet file.
    """
    try:
        return pq.read_schema(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: the file must be a Parquet file, got something else ({error})") from None


def _schema(file: str, names: Sequence[str]) -> pa.Schema:
    """Returns names and types of the chosen columns."""
    schema = read_schema(file)
    if missing := [name for name in names if name not in schema.names]:
        raise ValueError(f"{file}: columns must include {missing[0]!r}, got {listed(schema.names)}")
    return pa.schema([schema.field(name) for name in names], schema.metadata)
