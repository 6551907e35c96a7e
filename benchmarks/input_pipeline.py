"""The input pipeline of training beside the decoding rate of the machine: images per second, in batches of 64.

    python benchmarks/input_pipeline.py [--images 2000] [--batch 64] [--batches 16] [--repeats 3] [--json]

Rows: a bare loop that reads, decodes, converts and resizes with Pillow, in one and in two threads; the pipeline of this
package with threads and with two worker processes; torch's `DataLoader` with two workers and the same calls of Pillow.
All read the same synthetic photos of 640 x 480 in random order, resize them to 224 x 224, and take turns. Results are
medians; the first batches of each turn, which may have been ready, do not count. Ratios are relative to the bare loop
in two threads, the limit of two cores. The processor time per image, over all threads and processes, is the cost of a
loader that shares its cores with other work. The row of torch says so if torch is not installed.
"""

import argparse
import concurrent.futures
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

import siglip_jax
from siglip_jax.data.open import open_source
from siglip_jax.data.pipeline import Pipeline
from siglip_jax.data.transform import Transform
from siglip_jax.processing import SiglipImageProcessorPil, SiglipProcessor

SIZE = 224
DIFFERENT = 200  # different images; the others are copies, which are read and decoded too
READY = 7  # batches that a pipeline may have prepared: two in each worker, and those in transit


def write_images(folder: Path, count: int) -> float:
    """Writes photos of shapes, gradients and texture in ten folders; returns their mean size in bytes."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:480, 0:640]
    files = []
    for _ in range(min(count, DIFFERENT)):
        patches = PIL.Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        shapes = np.asarray(patches.resize((640, 480), PIL.Image.Resampling(int(rng.integers(2)) * 3)), np.float32)
        fine = PIL.Image.fromarray(rng.integers(0, 256, (240, 320, 3), np.uint8)).resize((640, 480))
        waves = np.sin(x / rng.uniform(3, 30) + rng.uniform(0, 9)) * np.cos(y / rng.uniform(3, 30))
        pixels = 0.6 * shapes + 30 * waves[..., None] + 0.22 * np.asarray(fine, np.float32)
        file = io.BytesIO()
        PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    for i in range(count):
        path = folder / f"class{i % 10}" / f"{i:05}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(files[i % len(files)])
    return sum(map(len, files)) / len(files)


def decoded(path: Path) -> np.ndarray:
    """Returns an image read, decoded and resized: the minimum that every row does."""
    with PIL.Image.open(io.BytesIO(path.read_bytes())) as image:
        return np.array(image.convert("RGB").resize((SIZE, SIZE), PIL.Image.Resampling.BICUBIC))


def bare(paths: list[Path], batch: int, threads: int) -> Iterator[np.ndarray]:
    """Yields batches that are decoded in threads, one at a time."""
    rng = np.random.default_rng(0)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        while True:
            chosen = [paths[i] for i in rng.integers(len(paths), size=batch)]
            yield np.stack(list(pool.map(decoded, chosen)) if threads > 1 else list(map(decoded, chosen)))


def ours(folder: Path, batch: int, workers: int) -> Iterator[Any]:
    """Returns the batches of the pipeline, without captions."""
    processor = SiglipProcessor(SiglipImageProcessorPil(), siglip_jax.load().processor.tokenizer)
    transform = Transform(processor, captions=False, labels=True)
    return Pipeline([(open_source(folder), 1.0)], transform, batch_size=batch, workers=workers).batches()


class Files:
    """A torch data set that does the same work per image."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return decoded(self.paths[index])


class Endless:
    """Endless random indices of images."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng(0)
        while True:
            yield int(rng.integers(self.count))


def theirs(paths: list[Path], batch: int, workers: int) -> Iterator[Any] | None:
    """Returns the batches of the torch loader, or None if torch is not installed."""
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        return None
    spawned = {
        "num_workers": workers,
        "multiprocessing_context": "spawn",
    }  # forking is unsafe beside the threads of JAX
    return iter(DataLoader(Files(paths), batch_size=batch, sampler=Endless(len(paths)), **spawned))


def main() -> None:
    """Runs the benchmark and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=16, help="batches measured in each turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_images(folder, arguments.images)
        paths = sorted(folder.glob("*/*.jpg"))
        sides = {
            "bare loop, 1 thread": bare(paths, arguments.batch, 1),
            "bare loop, 2 threads": bare(paths, arguments.batch, 2),
            "siglip_jax, threads": ours(folder, arguments.batch, 0),
            "siglip_jax, 2 workers": ours(folder, arguments.batch, 2),
            "torch DataLoader, 2 workers": theirs(paths, arguments.batch, 2),
        }
        for batches in sides.values():
            if batches is not None:
                measured(batches, 1, arguments.batch)
        turns: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(arguments.repeats):
            for name, batches in sides.items():
                if batches is not None:
                    turns[name].append(measured(batches, arguments.batches, arguments.batch))
        for batches in sides.values():
            if hasattr(batches, "close"):
                batches.close()
    medians = {name: [statistics.median(x) for x in zip(*found, strict=True)] for name, found in turns.items() if found}
    fastest, leanest = medians["bare loop, 2 threads"]
    results = {
        name: {
            "images_per_second": rate,
            "ratio": rate / fastest,
            "cpu_ms_per_image": cost,
            "cpu_ratio": leanest / cost,
        }
        for name, (rate, cost) in medians.items()
    }
    if arguments.json:
        print(json.dumps({"bytes_per_image": size, "results": results}, indent=2))
        return
    print(f"{arguments.images} JPEG of 640 x 480, {size / 1000:.0f} kB on average; batches of {arguments.batch}")
    for name in sides:
        found = results.get(name)
        row = "torch is not installed"
        if found is not None:
            row = f"{found['images_per_second']:7.0f}/s  {found['ratio']:5.2f} x"
            row += f"   {found['cpu_ms_per_image']:6.2f} ms of processor time  {found['cpu_ratio']:5.2f} x"
        print(f"{name:30} {row}")


def measured(batches: Iterator[Any], count: int, batch: int) -> tuple[float, float]:
    """Returns images per second, and milliseconds of processor time per image, after skipping prepared batches."""
    for _ in range(READY):
        next(batches)
    start, cost = time.perf_counter(), processor_time()
    for _ in range(count):
        next(batches)
    images = count * batch
    return images / (time.perf_counter() - start), 1000 * (processor_time() - cost) / images


def processor_time() -> float:
    """Returns the processor time of this process and its children in seconds."""
    children = Path("/proc/self/task").glob("*/children")
    pids = [os.getpid(), *(int(pid) for file in children for pid in file.read_text().split())]
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
