"""Search among many embeddings: time of an exact query and its growth, and time and recall of the index.

    python benchmarks/search.py [--rows 100000 300000 1000000] [--width 768] [--index-rows 20000] [--repeats 5] [--json]

Embeddings are random clusters, like those of images, in a memory-mapped collection on disk. The growth is the exponent
of a power law fitted to the times, 1 if time is proportional to the rows; the time for ten million rows is extrapolated
linearly. Memory is the increase of the peak of the process by the search. Recall is that of the ten nearest, for
queries near the embeddings but not among them.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from siglip_jax.search.approximate import open_index
from siglip_jax.search.collection import Collection, open_collection
from siglip_jax.search.making import PART_SIZE, finish_collection
from siglip_jax.search.manifest import Manifest
from siglip_jax.search.nearest import nearest
from siglip_jax.search.parts import write_part

K, QUERIES, CLUSTERS = 10, 100, 1000


def write_collection(directory: Path, rows: int, width: int) -> Collection:
    """Writes a collection of unit vectors around `CLUSTERS` centres."""
    directory.mkdir()
    items = {"kind": "images", "count": rows, "fingerprint": "", "options": {}}
    layout = {"format": "npy", "part_size": PART_SIZE, "batch_size": 1, "width": width}
    manifest = Manifest({}, {}, items, layout, "", "")
    manifest.write(directory)
    for part in range(manifest.parts):
        numbers = manifest.range_of(part)
        write_part(directory, manifest, part, vectors(part + 1, len(numbers), width), [str(i) for i in numbers], [])
    finish_collection(directory, manifest)
    return open_collection(directory)


def vectors(seed: int, rows: int, width: int) -> np.ndarray:
    """Returns float32 unit vectors, scattered around the same centres for every seed."""
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, width), np.float32)
    rng = np.random.default_rng(seed)
    x = centres[rng.integers(0, CLUSTERS, rows)] + 0.7 * rng.standard_normal((rows, width), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def exact(collection: Collection, queries: np.ndarray) -> Any:
    """Returns the result of exact search."""
    return nearest(queries, map(collection.embeddings, range(collection.manifest.parts)), K)


def timed(repeats: int, function: Any, *arguments: Any) -> float:
    """Returns the median time in seconds, after a call to warm up."""
    function(*arguments)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(*arguments)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    """Runs the benchmark and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--index-rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    queries = vectors(0, QUERIES, options.width)
    facts: dict[str, Any] = {}
    times = []
    with tempfile.TemporaryDirectory() as name:
        for rows in sorted(options.rows):
            collection = write_collection(Path(name) / f"exact-{rows}", rows, options.width)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            times.append(timed(options.repeats, exact, collection, queries[:1]))
            facts[f"exact, {rows:,} rows, seconds a query"] = round(times[-1], 4)
            more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            facts[f"exact, {rows:,} rows, further peak memory, MB"] = round(more)
        if len(times) > 1:
            rows = np.array(sorted(options.rows), np.float64)
            facts["growth, exponent"] = round(float(np.polyfit(np.log(rows), np.log(times), 1)[0]), 3)
            slope, constant = np.polyfit(rows, times, 1)
            facts["exact, 10,000,000 rows, seconds a query, extrapolated"] = round(float(slope * 1e7 + constant), 2)
        small = write_collection(Path(name) / "index", options.index_rows, options.width)
        start = time.perf_counter()
        index = open_index(small)
        where = f"index of {options.index_rows:,} rows"
        facts[f"{where}, seconds to build"] = round(time.perf_counter() - start, 1)
        facts[f"{where}, seconds a query"] = round(timed(options.repeats, index.search, queries[0], K), 5)
        facts[f"{where}, exact search, seconds a query"] = round(timed(options.repeats, exact, small, queries[:1]), 5)
        truth = exact(small, queries)[1]
        shares = [len(np.intersect1d(index.search(q, K)[1], t)) / K for q, t in zip(queries, truth, strict=True)]
        facts[f"{where}, recall of the ten nearest"] = round(float(np.mean(shares)), 4)
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    for fact, value in facts.items():
        print(f"{fact:<60} {value:>10}")


if __name__ == "__main__":
    main()
