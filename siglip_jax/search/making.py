"""Making a collection: a directory of the embeddings of many images or texts, by runs that may be killed at any time.

Complete parts are not computed again. The files end with the same bytes however often a run was killed and however many
processes shared the work. `manifest.json` records what the directory holds.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from siglip_jax._callbacks import Counter, OnProgress, OnUnreadable, naming
from siglip_jax._checks import check_choice, check_count
from siglip_jax._files import remove_litter, write_atomically
from siglip_jax._lock import check_free, locked, remove_unless_held
from siglip_jax.inference.engine import Siglip
from siglip_jax.search.collection import totals
from siglip_jax.search.feed import embed_batches
from siglip_jax.search.growing import growing
from siglip_jax.search.items import TEXTS, Items
from siglip_jax.search.manifest import FORMATS, MANIFEST, STORAGES, Manifest, new_manifest, read_manifest
from siglip_jax.search.nearest import BLOCK
from siglip_jax.search.parts import Record, fault_of, read_record

ERRORS = "errors.jsonl"
PART_SIZE = BLOCK  # exact search then needs no copy of a memory-mapped part
KEPT_EVERY = 60.0  # seconds after which the items of a part that are done are kept
_OURS = ("part-", MANIFEST, ERRORS)  # names of files that a killed run may leave half-written
_LOCK = re.compile(r"\.embed-(\d{1,6})-of-(\d{1,6})\.lock")


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
    storage: str | None = None,
    shard: tuple[int, int] | None = None,
    on_progress: OnProgress | None = None,
    on_unreadable: OnUnreadable | None = None,
) -> Outcome:
    """Embeds the items that a collection lacks, with a loaded model; `embed` also opens the source and loads the model.

    Each part of `part_size` items becomes an array (rows, E) and lists of the names and metadata of its rows, or a
    Parquet file with the columns `id`, `embedding` and those of metadata, and a record with the checksums of these
    files. A run that is stopped keeps all that it has done; a killed one loses a minute at most. Once all parts are
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
      storage: dtype of the stored embeddings, "float32" or "float16"; None: that of the collection, or "float32".
      shard: (i, n) to do part p if p % n == i; None: this process's share among those of `jax.distributed`.
      on_progress: called with (items done, items that this call has to do); None: nothing is called.
      on_unreadable: called with (index of an item, error); None: unreadable items are only listed.

    Returns:
      Counts of the items done by this call and of the parts left.

    Raises:
      BlockingIOError: if another process is embedding the same share into `out`.
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
        storage=storage,
    )
    with share_held(directory, index, count):
        own = range(index, manifest.parts, count)
        missing = [part for part in own if fault_of(directory, manifest, part) is not None]
        embedded, unreadable = embed_missing(
            siglip, items, directory, manifest, missing, on_progress=on_progress, on_unreadable=on_unreadable
        )
        return Outcome(embedded, unreadable, finish_collection(directory, manifest))


def embed_missing(
    siglip: Siglip,
    items: Items,
    directory: Path,
    manifest: Manifest,
    parts: Sequence[int],
    *,
    known: Mapping[int, Any] | None = None,
    on_progress: OnProgress | None = None,
    on_unreadable: OnUnreadable | None = None,
) -> tuple[int, int]:
    """Embeds parts and reports on it; what is done of a part when the run is stopped is kept.

    Args:
      siglip: model to embed with.
      items: images or texts to embed.
      directory: directory of the collection.
      manifest: manifest of the collection.
      parts: indices of the parts to embed.
      known: embeddings (E,) float32 that need not be computed, by the index of the item; None: there are none.
      on_progress: called with (items done, items that this call has to do); None: nothing is called.
      on_unreadable: called with (index of an item, error); None: nothing is called.

    Returns:
      Numbers of the items that were embedded, and that could not be read.
    """
    begun = {part: growing(directory, manifest, part) for part in parts}
    left = sum(len(_unknown(manifest, part, known)) - begun[part].done for part in parts)
    counter, unreadable = Counter(on_progress, left), 0
    with contextlib.closing(embed_parts(siglip, items, directory, manifest, parts, known)) as results:
        for count_done, lost in results:
            unreadable += len(lost)
            for entry in lost:
                if on_unreadable is not None:
                    on_unreadable(entry["position"], naming(entry["id"], ValueError(entry["error"])))
            counter.add(count_done)
    return counter.done - unreadable, unreadable


@contextlib.contextmanager
def share_held(directory: Path, index: int, count: int) -> Iterator[None]:
    """Holds the lock of the parts p with p % count == index, so that no two processes do the same part.

    Args:
      directory: directory of the collection.
      index: number of the share, from 0.
      count: number of shares.

    Raises:
      BlockingIOError: if a process holds the lock of a share that has a part in common; the message names it.
    """
    what = "a collection" if count == 1 else f"share {index}/{count} of a collection"
    own = directory / f".embed-{index}-of-{count}.lock"
    with locked(own, what):
        for path in directory.iterdir():
            other = _LOCK.fullmatch(path.name)
            if other is None or path == own:
                continue
            if (int(other[1]) - index) % math.gcd(int(other[2]), count) == 0:
                check_free(path, what)
        yield


def begin_collection(
    siglip: Siglip,
    items: Items,
    directory: Path,
    *,
    model_name: str | None = None,
    format: str | None = None,
    part_size: int | None = None,
    batch_size: int | None = None,
    storage: str | None = None,
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
      storage: dtype of the stored embeddings; None: that of the collection, or "float32".

    Returns:
      The manifest.

    Raises:
      ValueError: if the directory holds another collection, an argument is impossible, or there are no items.
    """
    check_count("part_size", part_size)
    check_count("batch_size", batch_size)
    if not len(items):
        raise ValueError(f"{items.path}: the source must have an item to embed, got none")
    asked = {"format": format, "part_size": part_size, "batch_size": batch_size, "storage": storage}
    manifest = planned(siglip, items, _begun(directory), model_name, asked)
    begun = _begun(directory)  # perhaps by another process meanwhile
    if begun is not None:
        begun.check_same(manifest, directory)
        return begun
    directory.mkdir(parents=True, exist_ok=True)
    manifest.write(directory)
    return manifest


def planned(
    siglip: Siglip, items: Items, begun: Manifest | None, model_name: str | None, asked: Mapping[str, Any]
) -> Manifest:
    """Returns the manifest of the collection that a call would begin.

    Args:
      siglip: model to embed with.
      items: images or texts to embed.
      begun: manifest of the collection in the directory, whose layout is the default; None: there is none.
      model_name: name or path of the model for `load`; None: the bundled model.
      asked: "format", "part_size", "batch_size" and "storage"; None for those that were not given.

    Raises:
      ValueError: if an argument is impossible.
    """
    if begun is None:
        batch = siglip.choices.text_batch if items.kind == TEXTS else siglip.choices.image_batch
        layout: dict[str, Any] = {"format": "npy", "part_size": PART_SIZE, "batch_size": batch}
    else:
        layout = {name: begun.layout[name] for name in asked if name in begun.layout}
    layout |= {name: value for name, value in asked.items() if value is not None}
    check_choice("format", layout["format"], FORMATS)
    check_choice("storage", layout.get("storage", "float32"), STORAGES)
    return new_manifest(siglip, items, model_name=model_name, **layout)


def embed_parts(
    siglip: Siglip,
    items: Items,
    directory: Path,
    manifest: Manifest,
    parts: Sequence[int],
    known: Mapping[int, Any] | None = None,
) -> Generator[tuple[int, list[dict[str, Any]]]]:
    """Embeds parts as one stream of batches and writes each part once it is complete.

    What is done of a part is kept every minute, and when the generator is closed or an error ends it.

    Args:
      siglip: model to embed with.
      items: images or texts to embed.
      directory: directory of the collection.
      manifest: manifest of the collection.
      parts: indices of the parts to embed.
      known: embeddings (E,) float32 that need not be computed, by the index of the item; None: there are none.

    Yields:
      For each batch the number of its items, and the entries of its unreadable items for `errors.jsonl`.
    """
    size = manifest.layout["batch_size"]
    known = known or {}
    # The batches of a part are the same whether it was begun before or not, so that they have the same bits.
    begun = {part: growing(directory, manifest, part) for part in parts}
    todo = {part: _unknown(manifest, part, known)[begun[part].done :] for part in parts}
    batches = (numbers[i : i + size] for numbers in todo.values() for i in range(0, len(numbers), size))
    results = embed_batches(siglip, items, batches, size)
    for part in parts:
        grown, since = begun.pop(part), time.monotonic()
        try:
            for _ in range(0, len(todo[part]), size):
                rows = next(results)
                grown.add(items, rows.embeds, rows.numbers)
                lost = grown.lose(items, rows.errors)
                yield len(rows.numbers) + len(lost), lost
                if time.monotonic() - since > KEPT_EVERY:
                    grown.keep(directory, manifest, part)
                    since = time.monotonic()
            kept = [number for number in manifest.range_of(part) if number in known]
            complete = grown.with_known(items, [known[number] for number in kept], kept)
            complete.write(directory, manifest, part)
        except BaseException:
            if grown.done:
                grown.keep(directory, manifest, part)
            raise


def _unknown(manifest: Manifest, part: int, known: Mapping[int, Any] | None) -> Sequence[int]:
    """Returns the indices of the items of a part whose embeddings must be computed."""
    numbers = manifest.range_of(part)
    return [number for number in numbers if number not in known] if known else numbers


def finish_collection(directory: Path, manifest: Manifest) -> int:
    """Completes the manifest and writes `errors.jsonl` once all parts are complete; returns how many are not."""
    records = [record for part in range(manifest.parts) if (record := _own_record(directory, manifest, part))]
    if len(records) < manifest.parts:
        return manifest.parts - len(records)
    write_atomically(directory / ERRORS, error_lines(records))
    dataclasses.replace(manifest, done=totals(directory, manifest, records)).write(directory)
    remove_litter(directory, lambda name: name.startswith(_OURS))
    for path in directory.iterdir():
        if _LOCK.fullmatch(path.name):
            remove_unless_held(path)
        elif path.suffix == ".unfinished":  # of a run that was killed between the record and this file
            path.unlink(missing_ok=True)
    return 0


def error_lines(records: Sequence[Record]) -> bytes:
    """Returns the contents of `errors.jsonl`.

    Args:
      records: records of all parts.
    """
    return "".join(json.dumps(entry) + "\n" for record in records for entry in record.unreadable).encode()


def _begun(directory: Path) -> Manifest | None:
    """Returns the manifest of the collection in a directory, if there is one."""
    return read_manifest(directory) if (directory / MANIFEST).exists() else None


def _own_record(directory: Path, manifest: Manifest, part: int) -> Record | None:
    """Returns the record of a part; None if there is none that belongs to this collection."""
    try:
        record = read_record(directory, part)
    except (OSError, ValueError):
        return None
    return record if record.collection == manifest.key else None
