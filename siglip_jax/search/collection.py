"""A collection: a directory of the embeddings of many images or texts, made by runs that may be killed at any time.

Complete parts are not computed again. The files end with the same bytes however often a run was killed and however many
processes shared the work. `manifest.json` records what the directory holds.
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
UNFINISHED = "the collection must be complete, got an unfinished one; run the same siglip-jax embed again"
PART_SIZE = BLOCK  # exact search then needs no copy of a memory-mapped part
_OURS = ("part-", MANIFEST, ERRORS)  # temporary files of a killed run have these names behind a dot


class Outcome(NamedTuple):
    """What a call of `embed_collection` did.

    Attributes:
      embedded: items that this call embedded.
      unreadable: items that this call could not read.
      parts_left: parts that other processes have not done yet; 0 once the collection is complete.
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
    """Embeds the items that a collection lacks, with a loaded model; `embed` also opens the source and loads the model.

    Each part of `part_size` items becomes an array (rows, E) float32 and a list of the names of its rows, or a Parquet
    file with the columns `id` and `embedding`, and a record with the checksums of these files. Once all parts are
    complete, `errors.jsonl` lists the unreadable items, which have no row.

    Args:
      siglip: model to embed with.
      items: images or texts to embed.
      out: directory of the collection; made if need be. A collection of the same model and items is resumed.
      model_name: name or path of the model for `load`, recorded so that `load_for` finds it; None: the bundled model.
      format: "npy" or "parquet"; None: that of the collection, or "npy".
      part_size: items of a part; None: that of the collection, or 2048.
      batch_size: items of a step; None: that of the collection, or a size for model and device. The last bits of the
        embeddings may depend on it.
      shard: (i, n) to do part p if p % n == i; None: this process's share among those of `jax.distributed`.
      on_progress: called with (items done, items that this call has to do); None: nothing is called.
      on_unreadable: called with (index of an item, error); None: unreadable items are only listed.

    Returns:
      Counts of the items done by this call and of the parts left.

    Raises:
      OSError: if `out` cannot be written.
      ValueError: if `out` holds another collection, an argument is impossible, there are no items, or an embedding is
        not finite.

    Example:
      >>> import siglip_jax, tempfile
      >>> from siglip_jax.search import open_items
      >>> items = open_items(siglip_jax.assets.EXAMPLES / "labels.txt")
      >>> with tempfile.TemporaryDirectory() as out:
      ...     embed_collection(siglip_jax.load(), items, out, part_size=32, shard=(0, 2))
      Outcome(embedded=32, unreadable=0, parts_left=1)
    """
    directory = Path(out)
    index, count = (jax.process_index(), jax.process_count()) if shard is None else shard
    if not 0 <= index < count:
        raise ValueError(f"shard must be i/n with i from 0 to n - 1, got {index}/{count}")
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
    """Returns the manifest of the collection in a directory; writes a new one if there is none.

    Args:
      siglip: model to embed with.
      items: images or texts to embed.
      directory: directory of the collection; made if need be.
      model_name: name or path of the model for `load`; None: the bundled model.
      format: "npy" or "parquet"; None: that of the collection, or "npy".
      part_size: items of a part; None: that of the collection, or 2048.
      batch_size: items of a step; None: that of the collection, or a size for model and device.

    Returns:
      The manifest.

    Raises:
      ValueError: if the directory holds another collection, an argument is impossible, or there are no items.
    """
    check_count("part_size", part_size)
    check_count("batch_size", batch_size)
    if not len(items):
        raise ValueError(f"{items.path}: the source must have an item to embed, got none")
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
    """Embeds parts as one stream of batches and writes each part once it is complete.

    Args:
      siglip: model to embed with.
      items: images or texts to embed.
      directory: directory of the collection.
      manifest: manifest of the collection.
      parts: indices of the parts to embed.

    Yields:
      For each batch the number of its items, and the entries of its unreadable items for `errors.jsonl`.
    """
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
    """Completes the manifest and writes `errors.jsonl` once all parts are complete; returns how many are not."""
    records = [record for part in range(manifest.parts) if (record := _own_record(directory, manifest, part))]
    if len(records) < manifest.parts:
        return manifest.parts - len(records)
    unreadable = [entry for record in records for entry in record.unreadable]
    lines = "".join(json.dumps(entry) + "\n" for entry in unreadable)
    write_atomically(directory / ERRORS, lines.encode())
    dataclasses.replace(manifest, done=_totals(directory, manifest, records)).write(directory)
    for path in directory.glob(".*.tmp"):  # left by runs that were killed
        if path.name[1:].startswith(_OURS):
            path.unlink(missing_ok=True)
    return 0


def verify_collection(directory: str | os.PathLike[str]) -> list[str]:
    """Returns what is wrong with a collection, after comparing all of its files with their checksums.

    Args:
      directory: directory of the collection.

    Returns:
      One line for each damaged or missing part, and for a manifest that does not fit its parts; an empty list if the
      collection is complete and undamaged.

    Raises:
      OSError: if the directory has no manifest.
      ValueError: if the manifest is damaged.

    Example:
      >>> import siglip_jax, tempfile
      >>> from siglip_jax.search import embed
      >>> with tempfile.TemporaryDirectory() as out:
      ...     _ = embed(siglip_jax.assets.EXAMPLES / "labels.txt", out)
      ...     verify_collection(out)
      []
    """
    home = Path(directory)
    manifest = read_manifest(home)
    faults = [fault for part in range(manifest.parts) if (fault := fault_of(home, manifest, part)) is not None]
    if manifest.done is None:
        return [*faults, f"{home / MANIFEST}: {UNFINISHED}"]
    if faults:
        return faults
    found = _totals(home, manifest, [read_record(home, part) for part in range(manifest.parts)])
    return [
        f"{home / MANIFEST}: {name} must be {found[name]}, got {manifest.done.get(name)}"
        for name in found
        if found[name] != manifest.done.get(name)
    ]


class Collection:
    """A complete collection, whose embeddings are memory-mapped part by part; `open_collection` opens one.

    Rows are numbered through all parts, and `len` is their number. An unreadable item has no row; `position` maps a row
    to its item.

    Attributes:
      directory: directory of the collection.
      manifest: which model made which embeddings of what, as `manifest.json` records it.
      checksum: SHA-256 of the records of all parts; it differs if a name or an embedding does.
      starts: index of the first row of each part, followed by the number of all rows, (parts + 1,) int64.

    Example:
      >>> import siglip_jax, tempfile
      >>> from siglip_jax.search import embed, open_collection
      >>> with tempfile.TemporaryDirectory() as out:
      ...     _ = embed(siglip_jax.assets.EXAMPLES / "labels.txt", out, part_size=40)
      ...     collection = open_collection(out)
      ...     collection.embeddings(1).shape, collection.ids(1)[0]
      ((24, 192), 'labels.txt:41')
      >>> collection.starts.tolist()
      [0, 40, 64]
      >>> collection.place(41)
      (1, 1)
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Reads the manifest and the records of all parts.

        Args:
          directory: directory of the collection.
        """
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory)
        done = self.manifest.done
        if done is None:
            raise ValueError(f"{directory}: {UNFINISHED}")
        records = [read_record(self.directory, part) for part in range(self.manifest.parts)]
        if _totals(self.directory, self.manifest, records) != done:
            raise ValueError(
                f"{directory}: the parts must be those that {MANIFEST} records, got others; run the same siglip-jax"
                " embed again"
            )
        self.checksum: str = done["checksum"]
        self.starts: Int64[np.ndarray, " ends"] = np.cumsum([0, *(record.rows for record in records)], dtype=np.int64)

    def __len__(self) -> int:
        """Returns the number of rows."""
        return int(self.starts[-1])

    def embeddings(self, part: int) -> Float32[np.ndarray, "rows embed"]:
        """Returns the embeddings of a part, memory-mapped.

        Args:
          part: index of the part, from 0.

        Returns:
          L2-normalised embeddings, (rows, E) float32.
        """
        return read_embeddings(self.directory, self.manifest, part, self._rows(part))

    def ids(self, part: int) -> list[str]:
        """Returns the names of the items of a part that have a row.

        Args:
          part: index of the part, from 0.

        Returns:
          A name for each row.
        """
        return read_ids(self.directory, self.manifest, part, self._rows(part))

    def _rows(self, part: int) -> int:
        return int(self.starts[part + 1] - self.starts[part])

    def place(self, row: int) -> tuple[int, int]:
        """Returns where a row is stored.

        Args:
          row: index of the row in the collection.

        Returns:
          The index of its part, and its index in that part.
        """
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return part, row - int(self.starts[part])

    def rows(self, rows: Int64[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows embed"]:
        """Returns the embeddings of some rows, copied into one array.

        Args:
          rows: indices of rows in the collection, (rows,) int64, in any order.

        Returns:
          L2-normalised embeddings, (rows, E) float32, in the order of `rows`.
        """
        found = np.empty((len(rows), self.manifest.layout["width"]), np.float32)
        of = np.searchsorted(self.starts, rows, side="right") - 1
        for part in np.unique(of).tolist():
            found[of == part] = self.embeddings(part)[rows[of == part] - self.starts[part]]
        return found

    def position(self, row: int) -> int:
        """Returns the index of the item that a row belongs to; unreadable items count but have no row.

        Args:
          row: index of the row in the collection.

        Returns:
          The index of the item in its source.
        """
        part, offset = self.place(row)
        lost = {entry.get("position") for entry in read_record(self.directory, part).unreadable}
        return [number for number in self.manifest.range_of(part) if number not in lost][offset]


def open_collection(directory: str | os.PathLike[str]) -> Collection:
    """Opens a complete collection; reads its manifest and records, but no embeddings.

    Args:
      directory: directory of the collection, as `embed` wrote it.

    Returns:
      The collection.

    Raises:
      OSError: if the directory holds no collection.
      ValueError: if the collection is not complete, or its parts were changed.

    Example:
      >>> import siglip_jax, tempfile
      >>> from siglip_jax.search import embed
      >>> with tempfile.TemporaryDirectory() as out:
      ...     _ = embed(siglip_jax.assets.EXAMPLES / "labels.txt", out)
      ...     collection = open_collection(out)
      >>> len(collection), collection.manifest.items["kind"]
      (64, 'texts')
    """
    return Collection(directory)


def _entry(items: Items, number: int, error: Exception) -> dict[str, Any]:
    """Returns the line of `errors.jsonl` for an unreadable item."""
    said = " ".join(str(error).split()) or type(error).__name__
    return {"position": number, "id": items.name(number), "error": said}


def _own_record(directory: Path, manifest: Manifest, part: int) -> Record | None:
    """Returns the record of a part; None if there is none that belongs to this collection."""
    try:
        record = read_record(directory, part)
    except (OSError, ValueError):
        return None
    return record if record.collection == manifest.key else None


def _totals(directory: Path, manifest: Manifest, records: list[Record]) -> dict[str, Any]:
    """Returns the counts and the checksum of a complete collection, which the manifest records as `done`."""
    digest = hashlib.sha256()
    for part in range(manifest.parts):
        digest.update(record_path(directory, part).read_bytes())
    unreadable = sum(len(record.unreadable) for record in records)
    return {"rows": sum(r.rows for r in records), "unreadable": unreadable, "checksum": digest.hexdigest()}
