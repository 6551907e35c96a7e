"""A collection: a directory of the embeddings of many images or texts, made by runs that may be killed at any time.

Parts that are there and whole are not computed again, and however often a run was killed, and however many processes
shared the work, the files end with the same bytes. What a directory holds, says its `manifest.json`.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int64

from siglip_jax._callbacks import Counter, OnProgress, OnUnreadable, naming
from siglip_jax._checks import check_choice, check_count
from siglip_jax._files import write_atomically
from siglip_jax.inference.engine import Siglip
from siglip_jax.search.feed import embed_batches
from siglip_jax.search.items import TEXTS, Items
from siglip_jax.search.manifest import FORMATS, MANIFEST, Manifest, new_manifest, read_manifest
from siglip_jax.search.nearest import BLOCK
from siglip_jax.search.parts import Record, fault_of, read_embeddings, read_ids, read_record, record_path, write_part

ERRORS = "errors.jsonl"
PART_SIZE = BLOCK  # exact search then reads parts where they are
_OURS = ("part-", MANIFEST, ERRORS)  # what the temporary files of a killed run are named after


class Outcome(NamedTuple):
    """What a run did.

    Attributes:
      embedded, unreadable: items, of this run.
      parts_left: parts that are not there, because other processes have not done them yet; 0 where all is done.
    """

    embedded: int
    unreadable: int
    parts_left: int


def embed_collection(
    siglip: Siglip,
    items: Items,
    out: str | os.PathLike[str],
    *,
    model_name: str | None = None,
    format: str | None = None,
    part_size: int | None = None,
    batch_size: int | None = None,
    shard: tuple[int, int] | None = None,
    on_progress: OnProgress | None = None,
    on_unreadable: OnUnreadable | None = None,
) -> Outcome:
    """Embeds the items that are not embedded yet.

    The directory gets, for each part of `part_size` items, an array (rows, width) float32 with the names of its rows,
    or a Parquet file with the columns `id` and `embedding`, and a record with their checksums; and when all parts are
    there `errors.jsonl`, which names the items that could not be read, and have no row.

    Args:
      out: made if it is not there; a collection that was begun there with the same model and items goes on.
      model_name: what `load` took; it is written down, so that a search finds the model.
      format: "npy" or "parquet". This and the next two are by default those of the collection, or of a new one
        "npy", 2048, and what `Siglip.encode_image` and `encode_text` take.
      batch_size: items of a step. Embeddings may differ in their last bits with it.
      shard: (i, n): of the parts p this call does those with p % n == i, and other processes the others. By default
        the number of this process and of all processes of `jax.distributed`.
      on_progress: called with the items done and those that this call has to do, first with 0 done.
      on_unreadable: called with the index of an item that cannot be read, and the error.

    Raises:
      OSError: if something cannot be written.
      ValueError: if the directory holds another collection, an option makes no sense, there are no items, or the model
        gives embeddings that are not finite.
    """
    directory = Path(out)
    index, count = (jax.process_index(), jax.process_count()) if shard is None else shard
    if not 0 <= index < count:
        raise ValueError(f"shard: expected i/n with i from 0 to n - 1, found {index}/{count}")
    manifest = begin_collection(
        siglip,
        items,
        directory,
        model_name=model_name,
        format=format,
        part_size=part_size,
        batch_size=batch_size,
    )
    own = range(index, manifest.parts, count)
    missing = [part for part in own if fault_of(directory, manifest, part) is not None]
    counter = Counter(on_progress, sum(len(manifest.range_of(part)) for part in missing))
    unreadable = 0
    for count_done, lost in embed_parts(siglip, items, directory, manifest, missing):
        unreadable += len(lost)
        for entry in lost:
            if on_unreadable is not None:
                on_unreadable(entry["position"], naming(entry["id"], ValueError(entry["error"])))
        counter.add(count_done)
    return Outcome(counter.done - unreadable, unreadable, finish_collection(directory, manifest))


def begin_collection(
    siglip: Siglip,
    items: Items,
    directory: Path,
    *,
    model_name: str | None = None,
    format: str | None = None,
    part_size: int | None = None,
    batch_size: int | None = None,
) -> Manifest:
    """Returns the manifest of the collection in a directory, begun if there is none; see `embed_collection`."""
    check_count("part_size", part_size)
    check_count("batch_size", batch_size)
    if not len(items):
        raise ValueError(f"{items.path}: expected something to embed, found nothing")
    begun = read_manifest(directory) if (directory / MANIFEST).exists() else None
    if begun is None:
        batch = siglip.choices.text_batch if items.kind == TEXTS else siglip.choices.image_batch
        layout: dict[str, Any] = {"format": "npy", "part_size": PART_SIZE, "batch_size": batch}
    else:
        layout = {name: begun.layout[name] for name in ("format", "part_size", "batch_size")}
    asked = {"format": format, "part_size": part_size, "batch_size": batch_size}
    layout |= {name: value for name, value in asked.items() if value is not None}
    check_choice("format", layout["format"], FORMATS)
    manifest = new_manifest(siglip, items, model_name=model_name, **layout)
    if begun is not None:
        begun.check_same(manifest, directory)
        return begun
    directory.mkdir(parents=True, exist_ok=True)
    manifest.write(directory)
    return manifest


def embed_parts(
    siglip: Siglip, items: Items, directory: Path, manifest: Manifest, parts: Sequence[int]
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Embeds parts in one stream and writes each; yields after each batch how many items it had, and its unreadable."""
    size = manifest.layout["batch_size"]
    ranges = [manifest.range_of(part) for part in parts]
    batches = (numbers[i : i + size] for numbers in ranges for i in range(0, len(numbers), size))
    results = embed_batches(siglip, items, batches, size)
    for part, numbers in zip(parts, ranges, strict=True):
        embeds, ids, unreadable = [], [], []
        for _ in range(0, len(numbers), size):
            rows = next(results)
            embeds.append(rows.embeds)
            ids += map(items.name, rows.numbers)
            lost = [_entry(items, number, error) for number, error in rows.errors.items()]
            unreadable += lost
            yield len(rows.numbers) + len(lost), lost
        write_part(directory, manifest, part, np.concatenate(embeds), ids, unreadable)


def finish_collection(directory: Path, manifest: Manifest) -> int:
    """Completes the manifest if all parts are there; returns how many are not."""
    records = [record for part in range(manifest.parts) if (record := _own_record(directory, manifest, part))]
    if len(records) < manifest.parts:
        return manifest.parts - len(records)
    unreadable = [entry for record in records for entry in record.unreadable]
    lines = "".join(json.dumps(entry) + "\n" for entry in unreadable)
    write_atomically(directory / ERRORS, lines.encode())
    dataclasses.replace(manifest, done=_totals(directory, manifest, records)).write(directory)
    for path in directory.glob(".*.tmp"):  # of runs that were killed
        if path.name[1:].startswith(_OURS):
            path.unlink(missing_ok=True)
    return 0


def verify_collection(directory: str | os.PathLike[str]) -> list[str]:
    """Returns what is wrong with a collection, a line each; nothing where all is whole. All its files are read.

    Raises:
      OSError, ValueError: if it has no manifest that can be read.
    """
    home = Path(directory)
    manifest = read_manifest(home)
    faults = [fault for part in range(manifest.parts) if (fault := fault_of(home, manifest, part)) is not None]
    if manifest.done is None:
        return [*faults, f"{home / MANIFEST}: not complete; run the same siglip-jax embed again"]
    if faults:
        return faults
    found = _totals(home, manifest, [read_record(home, part) for part in range(manifest.parts)])
    return [
        f"{home / MANIFEST}: expected {name} to be {found[name]}, found {manifest.done.get(name)}"
        for name in found
        if found[name] != manifest.done.get(name)
    ]


class Collection:
    """A whole collection, its embeddings mapped into memory part by part.

    Attributes:
      directory: where it lies.
      manifest: what it holds.
      checksum: differs where names or embeddings do.
      starts: the number of the first row of each part, and at the end of all rows.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Reads the manifest and the records; for `open_collection`."""
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory)
        done = self.manifest.done
        if done is None:
            raise ValueError(f"{directory}: the collection is not complete; run the same siglip-jax embed again")
        records = [read_record(self.directory, part) for part in range(self.manifest.parts)]
        if _totals(self.directory, self.manifest, records) != done:
            raise ValueError(f"{directory}: its parts were changed; run the same siglip-jax embed again")
        self.checksum: str = done["checksum"]
        self.starts: Int64[np.ndarray, " ends"] = np.cumsum([0, *(record.rows for record in records)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def embeddings(self, part: int) -> Float32[np.ndarray, "rows embed"]:
        """Returns the embeddings of a part, mapped into memory."""
        return read_embeddings(self.directory, self.manifest, part, self._rows(part))

    def ids(self, part: int) -> list[str]:
        """Returns the names of the rows of a part."""
        return read_ids(self.directory, self.manifest, part, self._rows(part))

    def _rows(self, part: int) -> int:
        return int(self.starts[part + 1] - self.starts[part])

    def place(self, row: int) -> tuple[int, int]:
        """Returns the part that holds a row, and which of its rows it is."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return part, row - int(self.starts[part])

    def rows(self, rows: Int64[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows embed"]:
        """Returns the embeddings of some rows."""
        found = np.empty((len(rows), self.manifest.layout["width"]), np.float32)
        of = np.searchsorted(self.starts, rows, side="right") - 1
        for part in np.unique(of).tolist():
            found[of == part] = self.embeddings(part)[rows[of == part] - self.starts[part]]
        return found

    def position(self, row: int) -> int:
        """Returns the number of the item that a row is of: items that could not be read have none."""
        part, offset = self.place(row)
        lost = {entry.get("position") for entry in read_record(self.directory, part).unreadable}
        return [number for number in self.manifest.range_of(part) if number not in lost][offset]


def open_collection(directory: str | os.PathLike[str]) -> Collection:
    """Opens a collection.

    Raises:
      OSError: if there is none.
      ValueError: if it is not complete, or its parts were changed.
    """
    return Collection(directory)


def _entry(items: Items, number: int, error: Exception) -> dict[str, Any]:
    said = " ".join(str(error).split()) or type(error).__name__
    return {"position": number, "id": items.name(number), "error": said}


def _own_record(directory: Path, manifest: Manifest, part: int) -> Record | None:
    try:
        record = read_record(directory, part)
    except (OSError, ValueError):
        return None
    return record if record.collection == manifest.key else None


def _totals(directory: Path, manifest: Manifest, records: list[Record]) -> dict[str, Any]:
    """Returns what the manifest says of a whole collection."""
    digest = hashlib.sha256()
    for part in range(manifest.parts):
        digest.update(record_path(directory, part).read_bytes())
    unreadable = sum(len(record.unreadable) for record in records)
    return {"rows": sum(r.rows for r in records), "unreadable": unreadable, "checksum": digest.hexdigest()}
