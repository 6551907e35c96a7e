"""Approximate search with usearch: a graph of the embeddings, built once and stored beside them in two files.

`index.usearch` holds the graph; `index.json` records which collection it was built from, its checksum and its recall.
usearch does not check what it reads, so a file is compared with the checksum first. That finds damage, not malice: of a
collection from somebody you do not trust, remove `index.json`, and the index is built anew.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from siglip_jax._callbacks import Counter, OnProgress
from siglip_jax._files import inside, read_json, write_atomically, written_aside
from siglip_jax._lock import locked
from siglip_jax._optional import import_optional
from siglip_jax.search.checked import sum_of
from siglip_jax.search.collection import Collection
from siglip_jax.search.nearest import check_finite, nearest

INDEX, FACTS = "index.usearch", "index.json"
DTYPE = "f16"  # half the memory of float32; the rows it finds are scored with the float32 embeddings
EXPANSION = 128  # candidates kept while the graph is built or searched
QUERIES, K = 100, 10  # the recall is measured on the K nearest rows of QUERIES rows


@dataclasses.dataclass(frozen=True)
class Approximate:
    """An index of a collection, which finds most of the nearest rows without comparing all; `open_index` makes one.

    Attributes:
      collection: collection that the index was built from.
      recall: share of the 10 nearest rows that it finds, from 0 to 1, measured on 100 rows of the collection.
    """

    collection: Collection
    recall: float
    _index: Any

    def search(
        self, query: Float32[np.ndarray, " embed"], k: int
    ) -> tuple[Float32[np.ndarray, " found"], Int64[np.ndarray, " found"]]:
        """Returns the rows that the index finds near a query, and their cosines.

        The index holds float16 copies; cosines are computed with the float32 embeddings of the rows it finds.

        Args:
          query: L2-normalised embedding, (E,) float32.
          k: number of rows to find; all rows if the collection has fewer.

        Returns:
          Cosines (found,) float32, largest first, and row indices (found,) int64; ties are broken by row index.

        Example:
          >>> import siglip_jax, tempfile
          >>> from siglip_jax.search import embed, open_collection, open_index
          >>> with tempfile.TemporaryDirectory() as out:
          ...     _ = embed(siglip_jax.assets.EXAMPLES / "labels.txt", out)
          ...     index = open_index(open_collection(out))
          ...     cosines, rows = index.search(index.collection.embeddings(0)[5], 3)
          >>> rows.shape, int(rows[0]), round(float(cosines[0]), 2)
          ((3,), 5, 1.0)
        """
        return _search(self._index, self.collection, query, k)


def open_index(collection: Collection, *, on_progress: OnProgress | None = None) -> Approximate:
    """Opens the index of a collection; builds it first if there is none, or only one of other embeddings.

    The index is stored in the directory of the collection, as `index.usearch` and `index.json`, and memory-mapped.

    Args:
      collection: collection to index.
      on_progress: called with (rows added, rows in all) while the index is built; None: nothing is called.

    Returns:
      The index.

    Raises:
      BlockingIOError: if another process is building the index.
      OSError: if the index cannot be written.
      ValueError: if usearch is not installed, or the stored index is damaged.

    Example:
      >>> import siglip_jax, tempfile
      >>> from siglip_jax.search import embed, open_collection
      >>> with tempfile.TemporaryDirectory() as out:
      ...     _ = embed(siglip_jax.assets.EXAMPLES / "labels.txt", out)
      ...     index = open_index(open_collection(out))
      >>> index.recall > 0.9
      True
    """
    path, facts_path = collection.directory / INDEX, collection.directory / FACTS
    checksum = collection.checksum
    made_of = {"collection": checksum, "dtype": DTYPE, "expansion": EXPANSION}
    facts = read_json(facts_path, "it describes the index") if facts_path.is_file() else {}
    if not path.is_file() or "sha256" not in facts or any(facts.get(name) != made_of[name] for name in made_of):
        with locked(collection.directory / ".index.lock", "an index"):
            facts = made_of | _build(collection, path, Counter(on_progress, len(collection)))
            write_atomically(facts_path, json.dumps(facts, indent=2).encode() + b"\n")
    if path.stat().st_size != facts.get("bytes") or not isinstance(facts.get("recall"), float):
        raise ValueError(
            f"{path}: the index must have {facts.get('bytes')} bytes, got {path.stat().st_size}; remove {FACTS}"
        )
    collection.checked.check(path, facts["sha256"], advice=f"remove {FACTS}")
    return Approximate(collection, facts["recall"], _restored(path))


def _build(collection: Collection, path: Path, counter: Counter) -> dict[str, Any]:
    """Writes the graph and returns the facts about it that `index.json` records."""
    index = _usearch().Index(
        ndim=collection.manifest.layout["width"],
        metric="ip",
        dtype=DTYPE,
        expansion_add=EXPANSION,
        expansion_search=EXPANSION,
        enable_key_lookups=False,
    )
    for part in range(collection.manifest.parts):
        embeds = collection.embeddings(part)
        start = int(collection.starts[part])
        index.add(np.arange(start, start + len(embeds), dtype=np.uint64), np.ascontiguousarray(embeds))
        counter.add(len(embeds))
    with written_aside(path) as aside:
        index.save(aside)
        stored = {"bytes": aside.stat().st_size, "sha256": sum_of(aside)}
    return stored | {"recall": _recall(index, collection), "queries": QUERIES, "k": K}


def _recall(index: Any, collection: Collection) -> float:
    """Returns the share of the exact `K` nearest rows that the index finds, over `QUERIES` rows as queries."""
    sample = np.unique(np.linspace(0, len(collection) - 1, QUERIES).round().astype(np.int64))
    queries = collection.rows(sample)
    _, exact = nearest(queries, map(collection.embeddings, range(collection.manifest.parts)), K)
    found = [_search(index, collection, query, K)[1] for query in queries]
    return float(np.mean([len(np.intersect1d(*pair)) / exact.shape[1] for pair in zip(exact, found, strict=True)]))


def _search(index: Any, collection: Collection, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    rows = index.search(query, min(k, len(collection))).keys.astype(np.int64)
    cosines = (collection.rows(rows) @ query).astype(np.float32)
    check_finite(cosines)
    order = np.lexsort((rows, -cosines))  # ties are broken by row index
    return cosines[order], rows[order]


def _restored(path: Path) -> Any:
    options = {"expansion_search": EXPANSION, "enable_key_lookups": False}
    try:
        return _usearch().Index.restore(inside(path), view=True, **options)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path}: the file must be an index of usearch, got another ({error}); remove {FACTS}"
        ) from None


def _usearch() -> Any:
    return import_optional("usearch.index", "approximate search", "search")
