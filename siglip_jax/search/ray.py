"""The job of `siglip-jax embed` as a Ray Data pipeline, on one machine or many that share a file system.

    python -m siglip_jax.search.ray SRC DIR [--model M] [--workers N]

An example to start from: each worker loads the model once and embeds whole parts as `embed_collection` does. The files
are the same to the byte, and each of the two resumes the work of the other. Needs the extra `ray`.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from siglip_jax._optional import import_optional
from siglip_jax.inference.load import load
from siglip_jax.search.items import open_items
from siglip_jax.search.making import begin_collection, embed_parts, finish_collection, share_held
from siglip_jax.search.manifest import read_manifest
from siglip_jax.search.parts import fault_of

PARTS = 4  # parts that a worker embeds at a time, as one stream


class _Worker:
    """Embeds parts; each process has one."""

    def __init__(self, source: str, out: str, model: str | None) -> None:
        self._siglip, self._items = load(model), open_items(source)
        self._directory, self._manifest = Path(out), read_manifest(Path(out))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        parts = [int(part) for part in batch["item"]]
        for _ in embed_parts(self._siglip, self._items, self._directory, self._manifest, parts):
            pass
        return {"done": np.array(parts)}


def embed_with_ray(
    source: str, out: str, *, model: str | None = None, workers: int = 2, part_size: int | None = None
) -> int:
    """Embeds the missing parts of a collection in several processes.

    Args:
      source: absolute path of the items, which every machine has.
      out: absolute path of the collection's directory, which all machines share.
      model: Hub name, or absolute path that every machine has; None: the bundled model.
      workers: number of processes; each holds a copy of the model.
      part_size: items of a part; None: that of the collection, or 2048.

    Returns:
      The number of parts left, which is 0 unless a worker failed.

    Raises:
      BlockingIOError: if another process is embedding into `out`.
      OSError: if the source does not exist or `out` cannot be written.
      ValueError: if `out` holds another collection, an argument is impossible, or Ray is not installed.
    """
    data: Any = import_optional("ray.data", "embedding with Ray", "ray")
    directory = Path(out)
    manifest = begin_collection(load(model), open_items(source), directory, model_name=model, part_size=part_size)
    with share_held(directory, 0, 1):
        missing = [part for part in range(manifest.parts) if fault_of(directory, manifest, part) is not None]
        if missing:
            blocks = -(-len(missing) // PARTS)
            pool = data.ActorPoolStrategy(size=workers)
            options: dict[str, Any] = {"fn_constructor_args": (source, out, model), "batch_size": PARTS}
            work = data.from_items(missing, override_num_blocks=blocks).map_batches(_Worker, compute=pool, **options)
            work.materialize()
        return finish_collection(directory, manifest)


def main() -> None:
    """Runs `embed_with_ray` with the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("out")
    parser.add_argument("--model")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--part-size", type=int)
    options = vars(parser.parse_args())
    source, out = (str(Path(options.pop(name)).resolve()) for name in ("source", "out"))
    left = embed_with_ray(source, out, **options)
    print(f"{left} parts left; the embeddings are in {out}")


if __name__ == "__main__":
    main()
