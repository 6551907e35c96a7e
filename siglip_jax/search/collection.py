"""Collections that are complete: opened, and read part by part."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from siglip_jax.search.checked import Checked
from siglip_jax.search.manifest import MANIFEST, Manifest, read_manifest
from siglip_jax.search.parts import Record, read_columns, read_embeddings, read_ids, read_record, record_path

UNFINISHED = "the collection must be complete, got an unfinished one; run the same siglip-jax embed again"


class Collection:
    """A complete collection, whose embeddings are memory-mapped part by part; `open_collection` opens one.

    Rows are numbered through all parts, and `len` is their number. An unreadable item has no row; `position` maps a row
    to its item.

    Attributes:
      directory: directory of the collection.
      manifest: which model made which embeddings of what, as `manifest.json` records it.
      checksum: SHA-256 of the records of all parts; it differs if a name or an embedding does.
      checked: files that have been compared with their checksums.
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
        records = self._records = [read_record(self.directory, part) for part in range(self.manifest.parts)]
        if totals(self.directory, self.manifest, records) != done:
            raise ValueError(
                f"{directory}: the parts must be those that {MANIFEST} records, got others; run the same siglip-jax"
                " embed again"
            )
        self.checksum: str = done["checksum"]
        self.checked = Checked(self.directory)
        self.starts: Int64[np.ndarray, " ends"] = np.cumsum([0, *(record.rows for record in records)], dtype=np.int64)

    def __len__(self) -> int:
        """Returns the number of rows."""
        return int(self.starts[-1])

    def embeddings(self, part: int) -> Float32[np.ndarray, "rows embed"]:
        """Returns the embeddings of a part, memory-mapped, or converted if they are stored in float16.

        Args:
          part: index of the part, from 0.

        Returns:
          L2-normalised embeddings, (rows, E) float32.

        Raises:
          OSError: if the file cannot be read.
          ValueError: if the file was changed since it was recorded, or an embedding is not finite.
        """
        stored = read_embeddings(self.directory, self.manifest, part, self._records[part], self.checked)
        return stored if stored.dtype == np.float32 else stored.astype(np.float32)

    def ids(self, part: int) -> list[str]:
        """Returns the names of the items of a part that have a row.

        Args:
          part: index of the part, from 0.

        Returns:
          A name for each row.

        Raises:
          OSError: if the file cannot be read.
          ValueError: if the file was changed since it was recorded.
        """
        return read_ids(self.directory, self.manifest, part, self._records[part], self.checked)

    def metadata(self, part: int) -> dict[str, list[Any]]:
        """Returns the metadata of the items of a part that have a row, by the name of the column.

        Args:
          part: index of the part, from 0.

        Returns:
          For each column a list with a value for each row; a collection of texts has the column "text".

        Raises:
          OSError: if the file cannot be read.
          ValueError: if the file was changed since it was recorded.
        """
        return read_columns(self.directory, self.manifest, part, self._records[part], self.checked)

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
        lost = {entry.get("position") for entry in self._records[part].unreadable}
        return [number for number in self.manifest.range_of(part) if number not in lost][offset]


def open_collection(directory: str | os.PathLike[str]) -> Collection:
    """Opens a complete collection; reads its manifest and records, but no embeddings.

    Embeddings and names are compared with their checksums when they are first read, once for each content.

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


def totals(directory: Path, manifest: Manifest, records: list[Record]) -> dict[str, Any]:
    """Returns the counts and the checksum of a complete collection, which the manifest records as `done`."""
    digest = hashlib.sha256()
    for part in range(manifest.parts):
        digest.update(record_path(directory, part).read_bytes())
    unreadable = sum(len(record.unreadable) for record in records)
    return {"rows": sum(r.rows for r in records), "unreadable": unreadable, "checksum": digest.hexdigest()}
