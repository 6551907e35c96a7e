"""Approximate search with usearch: a graph of the embeddings, built once and kept beside them as two files.

`index.json` says of which collection the graph in `index.usearch` is, and how much of an exact search it finds.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from siglip_jax._callbacks import Counter, OnProgress
from siglip_jax._files import inside, read_json, write_atomically, written_aside
from siglip_jax._optional import import_optional
from siglip_jax.search.collection import Collection
from siglip_jax.search.nearest import nearest

INDEX, FACTS = "index.usearch", "index.json"
DTYPE = "f16"  # half the memory of float32; what is found is scored with the embeddings themselves
EXPANSION = 128  # candidates kept while the graph is built or searched
QUERIES, K = 100, 10  # rows that serve as queries, and how many neighbours of each are compared


@dataclasses.dataclass(frozen=True)
class Approximate:
    """An index of a collection.

    Attributes:
      recall: the share of the `K` nearest rows of `QUERIES` rows that it finds.
    """

    collection: Collection
    recall: float
    _index: Any

    def search(
        self, query: Float32[np.ndarray, " embed"], k: int
    ) -> tuple[Float32[np.ndarray, " found"], Int64[np.ndarray, " found"]]:
        """Returns the highest cosines among the rows that the index finds, highest first, and these rows."""
        return _search(self._index, self.collection, query, k)


def open_index(collection: Collection, *, on_progress: OnProgress | None = None) -> Approximate:
    """Opens the index of a collection, which is built first where there is none, or one of other embeddings.

    Args:
      on_progress: called while it is built with the rows added and the number of all.

    Raises:
      OSError: if it cannot be written.
      ValueError: if usearch is missing, or an index is damaged.
    """
    path, facts_path = collection.directory / INDEX, collection.directory / FACTS
    checksum = collection.checksum
    facts = read_json(facts_path, "it belongs to the index") if facts_path.is_file() else {}
    if facts.get("collection") != checksum or not path.is_file():
        facts = {"collection": checksum} | _build(collection, path, Counter(on_progress, len(collection)))
        write_atomically(facts_path, json.dumps(facts, indent=2).encode() + b"\n")
    if path.stat().st_size != facts.get("bytes") or not isinstance(facts.get("recall"), float):
        raise ValueError(f"{path}: expected {facts.get('bytes')} bytes, found {path.stat().st_size}; remove {FACTS}")
    return Approximate(collection, facts["recall"], _restored(path))


def _build(collection: Collection, path: Path, counter: Counter) -> dict[str, Any]:
    """Writes the graph and returns what is said of it."""
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
    return {"bytes": path.stat().st_size, "recall": _recall(index, collection), "queries": QUERIES, "k": K}


def _recall(index: Any, collection: Collection) -> float:
    sample = np.unique(np.linspace(0, len(collection) - 1, QUERIES).round().astype(np.int64))
    queries = collection.rows(sample)
    _, exact = nearest(queries, map(collection.embeddings, range(collection.manifest.parts)), K)
    found = [_search(index, collection, query, K)[1] for query in queries]
    return float(np.mean([len(np.intersect1d(*pair)) / exact.shape[1] for pair in zip(exact, found, strict=True)]))


def _search(index: Any, collection: Collection, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    rows = index.search(query, min(k, len(collection))).keys.astype(np.int64)
    cosines = (collection.rows(rows) @ query).astype(np.float32)
    order = np.lexsort((rows, -cosines))  # of equal ones the lower row first
    return cosines[order], rows[order]


def _restored(path: Path) -> Any:
    options = {"expansion_search": EXPANSION, "enable_key_lookups": False}
    try:
        return _usearch().Index.restore(inside(path), view=True, **options)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: expected an index of usearch, found no such ({error}); remove {FACTS}") from None


def _usearch() -> Any:
    return import_optional("usearch.index", "approximate search", "search")
