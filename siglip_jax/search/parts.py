"""The numbered parts of a collection: files of embeddings and names, and a record that is written after both.

Part 17 is `part-000017.npy` with `part-000017.ids.json` and perhaps `part-000017.columns.json`, or
`part-000017.parquet`; `part-000017.states`, by which an update knows the items again; the record `part-000017.json`.
Every file is written under a temporary name and renamed; none depends on the time or on earlier contents of the
directory.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from siglip_jax._files import read_json, write_atomically, written_aside
from siglip_jax._npy import load_npy
from siglip_jax._optional import import_optional
from siglip_jax.search.checked import Checked, sum_of
from siglip_jax.search.manifest import Manifest

_SURROGATES = re.compile("[\ud800-\udfff]")
_ESCAPES = re.compile(r"\\(\\|u([0-9a-f]{4}))")
_ESCAPED = "siglip_jax.escaped_ids"  # key of the metadata of Parquet: rows whose id has escapes


class Record(NamedTuple):
    """The record of a complete part.

    Attributes:
      collection: `Manifest.key` of the collection that the part belongs to.
      rows: number of embeddings.
      unreadable: `position`, `id` and `error` of each item that could not be read and has no row.
      files: SHA-256 of each file, by name.
    """

    collection: str
    rows: int
    unreadable: list[dict[str, Any]]
    files: dict[str, str]


def parts_with_records(directory: Path) -> set[int]:
    """Returns the indices of the parts that have a record, however many a manifest says that there are."""
    found = (re.fullmatch(r"part-(\d{6,18})\.json", entry.name) for entry in os.scandir(directory))
    return {int(match[1]) for match in found if match is not None}


def record_path(directory: Path, part: int) -> Path:
    """Returns the path of the record of a part."""
    return directory / f"part-{part:06d}.json"


def write_part(
    directory: Path,
    manifest: Manifest,
    part: int,
    embeds: Float32[np.ndarray, "rows embed"],
    ids: list[str],
    unreadable: list[dict[str, Any]],
    *,
    states: Sequence[str] = (),
    columns: Mapping[str, list[Any]] | None = None,
) -> None:
    """Writes a part, its record last, so that a part with a record is complete.

    Args:
      directory: directory of the collection.
      manifest: manifest of the collection.
      part: index of the part, from 0.
      embeds: L2-normalised embeddings of the readable items, (rows, E) float32.
      ids: names of the readable items, one for each row.
      unreadable: `position`, `id` and `error` of each unreadable item.
      states: 32 hexadecimal digits for each row, by which an update knows the item again; (): no update will.
      columns: metadata of each row, by the name of the column.
    """
    embeds = embeds.astype(manifest.layout.get("storage", "float32"))
    columns = {name: [_plain(value) for value in values] for name, values in (columns or {}).items()}
    name, files = record_path(directory, part).stem, {}
    if manifest.layout["format"] == "npy":
        files[f"{name}.npy"] = _write_array(directory / f"{name}.npy", embeds)
        listed = json.dumps(ids).encode() + b"\n"
        write_atomically(directory / f"{name}.ids.json", listed)
        files[f"{name}.ids.json"] = hashlib.sha256(listed).hexdigest()
        if columns:
            listed = json.dumps(columns).encode() + b"\n"
            write_atomically(directory / f"{name}.columns.json", listed)
            files[f"{name}.columns.json"] = hashlib.sha256(listed).hexdigest()
    else:
        files[f"{name}.parquet"] = _write_parquet(directory / f"{name}.parquet", embeds, ids, columns)
    known = b"".join(map(bytes.fromhex, states))
    write_atomically(directory / f"{name}.states", known)
    files[f"{name}.states"] = hashlib.sha256(known).hexdigest()
    record = Record(manifest.key, len(ids), unreadable, files)
    write_atomically(record_path(directory, part), json.dumps(record._asdict(), indent=1).encode() + b"\n")


def read_record(directory: Path, part: int) -> Record:
    """Reads the record of a part.

    Args:
      directory: directory of the collection.
      part: index of the part, from 0.

    Returns:
      The record.

    Raises:
      FileNotFoundError: if the part has no record.
      ValueError: if the record is damaged.
    """
    path = record_path(directory, part)
    found = read_json(path, "it is written when the part is complete; run the same siglip-jax embed again")
    collection, rows, unreadable, files = (found.get(name) for name in Record._fields)
    lost = isinstance(unreadable, list) and all(isinstance(entry, dict) for entry in unreadable)
    if not (lost and isinstance(collection, str) and type(rows) is int and rows >= 0 and isinstance(files, dict)):
        raise ValueError(
            f"{path}: the file must be the record of a part, got something else; remove it and embed again"
        )
    return Record(collection, rows, unreadable, files)


def fault_of(directory: Path, manifest: Manifest, part: int) -> str | None:
    """Returns what is wrong with a part, after comparing all of its files with their checksums.

    Args:
      directory: directory of the collection.
      manifest: manifest of the collection.
      part: index of the part, from 0.

    Returns:
      One line; None if the part is complete and undamaged.
    """
    try:
        record = read_record(directory, part)
    except (OSError, ValueError) as error:
        return str(error)
    if record.collection != manifest.key:
        return f"{record_path(directory, part)}: the part must be of this collection, got one of another collection"
    if record.rows + len(record.unreadable) != len(manifest.range_of(part)):
        counted = f"{record.rows} embeddings and {len(record.unreadable)} unreadable items"
        return f"{record_path(directory, part)}: the part must have {len(manifest.range_of(part))} items, got {counted}"
    for ending in endings_of(manifest):
        name = f"{record_path(directory, part).stem}{ending}"
        expected = record.files.get(name)
        try:
            found = sum_of(directory / name)
        except (OSError, ValueError) as error:
            return f"{directory / name}: cannot be read ({error})"
        if found != expected:
            return f"{directory / name}: the SHA-256 must be {expected}, got {found}; the file was changed"
    return None


def endings_of(manifest: Manifest) -> tuple[str, ...]:
    """Returns the endings of the files of a part, without its record."""
    if manifest.layout["format"] == "parquet":
        return ".parquet", ".states"
    return ".npy", ".ids.json", *((".columns.json",) if manifest.layout.get("columns") else ()), ".states"


def read_embeddings(
    directory: Path, manifest: Manifest, part: int, record: Record, checked: Checked | None
) -> Float[np.ndarray, "rows embed"]:
    """Returns the embeddings of a part, memory-mapped.

    Args:
      directory: directory of the collection.
      manifest: manifest of the collection.
      part: index of the part, from 0.
      record: record of the part.
      checked: what is known of the files; None: they are not compared with their checksums.

    Returns:
      L2-normalised embeddings, (rows, E), float32 or as they are stored.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if the file was changed, or does not hold finite embeddings of the recorded shape.
    """
    name = record_path(directory, part).stem
    path = directory / f"{name}.{manifest.layout['format']}"
    expected, stored = (record.rows, manifest.layout["width"]), manifest.layout.get("storage", "float32")

    def mapped() -> np.ndarray:
        embeds = _mapped(path)
        if embeds.shape != expected or embeds.dtype != stored:
            found = f"{embeds.shape} {embeds.dtype}"
            raise ValueError(f"{path}: the embeddings must be {expected} {stored}, got {found}; embed again")
        return embeds

    def check_finite() -> None:
        if not np.isfinite(mapped()).all():
            raise ValueError(f"{path}: the embeddings must be finite, got NaN or infinity; embed again")

    if checked is None:
        check_finite()
    else:
        checked.check(path, record.files.get(path.name), check_finite)
    return mapped()


def _mapped(path: Path) -> np.ndarray:
    """Returns the embeddings in a file, memory-mapped and as they are."""
    if path.suffix == ".parquet":
        column = _read_parquet(path, "embedding")[0].combine_chunks()
        return column.flatten().to_numpy().reshape(len(column), -1)
    return load_npy(path)


def read_ids(directory: Path, manifest: Manifest, part: int, record: Record, checked: Checked | None) -> list[str]:
    """Returns the names of the items of a part that have a row, in the order of the rows.

    Args:
      directory: directory of the collection.
      manifest: manifest of the collection.
      part: index of the part, from 0.
      record: record of the part.
      checked: what is known of the files; None: they are not compared with their checksums.

    Returns:
      A name for each row.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if the file was changed, or does not hold a name for each row.
    """
    ending = ".ids.json" if manifest.layout["format"] == "npy" else ".parquet"
    path, rows = directory / f"{record_path(directory, part).stem}{ending}", record.rows
    if checked is not None:
        checked.check(path, record.files.get(path.name))
    try:
        ids = json.loads(path.read_bytes()) if ending == ".ids.json" else _parquet_ids(path)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(
            f"{path}: the file must hold a list of names, got something else ({error}); embed again"
        ) from None
    if not isinstance(ids, list) or len(ids) != rows or not all(isinstance(name, str) for name in ids):
        raise ValueError(f"{path}: the file must hold a list of {rows} names, got something else; embed again")
    return ids


def read_columns(
    directory: Path, manifest: Manifest, part: int, record: Record, checked: Checked | None
) -> dict[str, list[Any]]:
    """Returns the metadata of the items of a part that have a row, by the name of the column.

    Args:
      directory: directory of the collection.
      manifest: manifest of the collection.
      part: index of the part, from 0.
      record: record of the part.
      checked: what is known of the files; None: they are not compared with their checksums.

    Returns:
      For each column of the collection a list with a value for each row.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if the file was changed, or does not hold a value for each row.
    """
    names = manifest.layout.get("columns", [])
    if not names:
        return {}
    ending = ".columns.json" if manifest.layout["format"] == "npy" else ".parquet"
    path = directory / f"{record_path(directory, part).stem}{ending}"
    if checked is not None:
        checked.check(path, record.files.get(path.name))
    if ending == ".parquet":
        found = {name: [json.loads(x) for x in _read_parquet(path, name)[0].to_pylist()] for name in names}
    else:
        try:
            found = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: the file must be JSON, got something else ({error}); embed again") from None
    lists = isinstance(found, dict) and [found.get(name) for name in names]
    if not lists or not all(isinstance(values, list) and len(values) == record.rows for values in lists):
        raise ValueError(f"{path}: the columns must have {record.rows} values each, got others; embed again")
    return {name: found[name] for name in names}


def read_states(directory: Path, part: int) -> list[bytes]:
    """Returns the state of each row of a part, 16 bytes each; none if they were not stored.

    Args:
      directory: directory of the collection.
      part: index of the part, from 0.
    """
    data = (directory / f"{record_path(directory, part).stem}.states").read_bytes()
    return [data[i : i + 16] for i in range(0, len(data), 16)]


def _plain(value: Any) -> Any:
    """Returns a value that JSON can hold: itself, or as text."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return str(value)
    return value


def _write_array(path: Path, embeds: np.ndarray) -> str:
    """Writes an array and returns the SHA-256 of the file."""
    with written_aside(path) as aside:
        with aside.open("wb") as file:
            np.save(file, embeds, allow_pickle=False)
        return sum_of(aside)


def _write_parquet(path: Path, embeds: np.ndarray, ids: list[str], columns: Mapping[str, list[Any]]) -> str:
    """Writes the columns `id`, `embedding` and those of metadata, in JSON; returns the SHA-256 of the file.

    A column of strings holds UTF-8 only. An id that is not has escapes, and its row is listed in the file's metadata.
    """
    pa, pq = _pyarrow()
    lists = pa.FixedSizeListArray.from_arrays(pa.array(embeds.reshape(-1)), embeds.shape[1])
    rows = [row for row, name in enumerate(ids) if _SURROGATES.search(name)]
    escaped = list(ids)
    for row in rows:
        escaped[row] = ids[row].replace("\\", "\\\\").encode("utf-8", "backslashreplace").decode()
    metadata = {name: pa.array(map(json.dumps, values), pa.string()) for name, values in columns.items()}
    found = {"id": pa.array(escaped, pa.string()), "embedding": lists} | metadata
    table = pa.table(found, metadata={_ESCAPED: json.dumps(rows)} if rows else None)
    with written_aside(path) as aside:
        pq.write_table(table, aside, compression="none", use_dictionary=False)
        return sum_of(aside)


def _parquet_ids(path: Path) -> list[str]:
    """Returns the column `id` of a Parquet file, with the escapes of `_write_parquet` undone."""
    column, metadata = _read_parquet(path, "id")
    ids = column.to_pylist()
    for row in json.loads(metadata.get(_ESCAPED.encode(), "[]")):
        ids[row] = _ESCAPES.sub(lambda found: chr(int(found[2], 16)) if found[2] else "\\", ids[row])
    return ids


def _read_parquet(path: Path, column: str) -> tuple[Any, dict[bytes, bytes]]:
    """Returns a column of a Parquet file, memory-mapped, and the metadata of its schema."""
    pa, pq = _pyarrow()
    try:
        table = pq.read_table(path, columns=[column], memory_map=True, partitioning=None)
        return table.column(column), table.schema.metadata or {}
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(f"{path}: the file must be Parquet with a column {column!r}, got another ({error})") from None


def _pyarrow() -> tuple[Any, Any]:
    need = "writing and reading embeddings as Parquet"
    return import_optional("pyarrow", need, "data"), import_optional("pyarrow.parquet", need, "data")
