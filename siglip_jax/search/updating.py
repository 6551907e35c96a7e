"""Updating a collection whose source has changed: what is new is embedded, what is gone is removed, the rest is kept.

The new collection is made in the directory `.update` of the old one, which can be searched until it is replaced. A run
that is killed resumes, also while the files are moved.
"""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from siglip_jax._callbacks import OnProgress, OnUnreadable
from siglip_jax.inference.engine import Siglip
from siglip_jax.search.collection import Collection
from siglip_jax.search.items import Items, state_of
from siglip_jax.search.making import Outcome, embed_missing, finish_collection, planned, share_held
from siglip_jax.search.manifest import MANIFEST, Manifest, read_manifest
from siglip_jax.search.parts import fault_of, parts_with_records, read_states, record_path

STAGED = ".update"


def update_collection(
    siglip: Siglip,
    items: Items,
    directory: Path,
    *,
    model_name: str | None,
    asked: dict[str, Any],
    on_progress: OnProgress | None = None,
    on_unreadable: OnUnreadable | None = None,
) -> Outcome:
    """Makes a complete collection one of other items of the same kind; those that it holds are not embedded again.

    Args:
      siglip: model to embed with, which made the collection.
      items: images or texts that the collection is to hold.
      directory: directory of the collection.
      model_name: name or path of the model for `load`; None: the bundled model.
      asked: "format", "part_size", "batch_size" and "storage"; None for those that were not given.
      on_progress: called with (items done, items that this call has to do); None: nothing is called.
      on_unreadable: called with (index of an item, error); None: unreadable items are only listed.

    Returns:
      Counts of the items embedded by this call.

    Raises:
      BlockingIOError: if another process is embedding into the directory.
      OSError: if the directory holds no collection, or cannot be written.
      ValueError: if the collection is not complete, or was made by another model or with other options.
    """
    with share_held(directory, 0, 1):
        settle(directory)
        old = read_manifest(directory)
        wanted = planned(siglip, items, old, model_name, asked)
        same_items = dataclasses.replace(wanted, items=wanted.items | _identity(old))
        old.check_same(same_items, directory)
        if wanted.key == old.key:
            return Outcome(0, 0, 0)
        known = _Known(Collection(directory), items)
        staged = directory / STAGED
        if (staged / MANIFEST).exists() and read_manifest(staged).key != wanted.key:
            shutil.rmtree(staged)  # of an update to items that have changed since
        staged.mkdir(exist_ok=True)
        if not (staged / MANIFEST).exists():
            wanted.write(staged)
        missing = [part for part in range(wanted.parts) if fault_of(staged, wanted, part) is not None]
        embedded, unreadable = embed_missing(
            siglip, items, staged, wanted, missing, known=known, on_progress=on_progress, on_unreadable=on_unreadable
        )
        finish_collection(staged, wanted)
        wanted.write(directory)  # from here on the directory is the new collection, which lacks its parts
        settle(directory)
    return Outcome(embedded, unreadable, 0)


def settle(directory: Path) -> None:
    """Moves the parts of a complete update to their place, if it has become the collection.

    Args:
      directory: directory of a collection, whose lock is held.
    """
    staged = directory / STAGED
    if not (staged / MANIFEST).exists():
        return
    new = read_manifest(staged)
    here = read_manifest(directory)
    if new.done is None or new.key != here.key:
        return
    if here.done is not None:  # it was killed after the last file
        shutil.rmtree(staged)
        return
    for path in list(staged.iterdir()):
        if path.name != MANIFEST:
            os.replace(path, directory / path.name)
    for part in parts_with_records(directory):
        if part >= new.parts:
            for path in directory.glob(f"{record_path(directory, part).stem}.*"):
                path.unlink()
    finish_collection(directory, new)
    shutil.rmtree(staged)


def _identity(manifest: Manifest) -> dict[str, Any]:
    """Returns what may differ between the items of a collection and those that it is updated to."""
    return {name: manifest.items[name] for name in ("count", "fingerprint")}


class _Known(Mapping[int, np.ndarray]):
    """The embeddings of the items that a collection holds, by their index among other items."""

    def __init__(self, collection: Collection, items: Items) -> None:
        """Compares the states of all items.

        Args:
          collection: collection that may hold some of the items.
          items: images or texts.
        """
        self._collection = collection
        rows: dict[bytes, int] = {}
        for part in range(collection.manifest.parts):
            start = int(collection.starts[part])
            rows |= {state: start + row for row, state in enumerate(read_states(collection.directory, part))}
        self._rows = np.full(len(items), -1, np.int64)
        for number in range(len(items)):
            with contextlib.suppress(OSError, ValueError):  # it is reported when the item is read
                self._rows[number] = rows.get(bytes.fromhex(state_of(items, number)), -1)

    def __len__(self) -> int:
        return int((self._rows >= 0).sum())

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(self._rows >= 0).tolist())

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and bool(self._rows[number] >= 0)

    def __getitem__(self, number: int) -> Float32[np.ndarray, " embed"]:
        if number not in self:
            raise KeyError(number)
        return self._collection.rows(self._rows[number : number + 1])[0]
