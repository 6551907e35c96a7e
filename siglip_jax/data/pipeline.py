"""Batches for training: each is a pure function of its step, for any number of workers and processes and any start.

Grain prefetches, in threads of this process or in worker processes. An unreadable example is replaced and named in its
batch, and no other row changes.
"""

import concurrent.futures
import functools
import os
import shutil
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import absl.flags
import jax
import numpy as np
from jaxtyping import Shaped

from siglip_jax._optional import import_optional
from siglip_jax.data.example import Source
from siglip_jax.data.fingerprint import fingerprint
from siglip_jax.data.order import Order
from siglip_jax.data.sizes import StepSizes
from siglip_jax.data.transform import Row, Transform

grain: Any = import_optional("grain", "the input pipeline", "data")

_SHARED = "/dev/shm"  # holds the arrays of worker processes; containers often have 64 MB of it
_SMALLEST_SHARED = 2**16  # bytes of an array that is worth sharing


class Batch(NamedTuple):
    """The rows of one training step that belong to this process.

    Attributes:
      arrays: `pixels`, (rows, height, width, 3) uint8, or patches, (rows, patches, values) uint8, with
        `spatial_shapes`, (rows, 2) int32; `index`, (rows,) int64, the index of each example counted over all sources;
        and if the transform returns them `input_ids`, (rows, positions) int32, `image_ids`, (rows,) int32, equal for
        rows of the same image, `label`, (rows,) int32, `region_ids` and `region_weights`, (rows, 2, positions).
      skipped: one "name: reason" for each example that was unreadable and was replaced.

    Example:
      >>> batch = Batch({"index": np.arange(4)}, ("pairs.jsonl:12: no such image",))
      >>> len(batch.arrays["index"])
      4
    """

    arrays: dict[str, Shaped[np.ndarray, "rows ..."]]
    skipped: tuple[str, ...]


class _Read(NamedTuple):
    """The result of reading one place of the order; `row` is None if the example is unreadable."""

    row: Row | None
    index: int
    skipped: tuple[str, ...]


class Pipeline:
    """An endless sequence of training batches from one source or a mixture of sources.

    Each batch is a pure function of its step and the arguments, so a run resumes at any step without replaying the ones
    before, and neither the number of workers nor that of processes changes the data. Every source is shuffled anew for
    each epoch. An unreadable example is replaced by one half an epoch away and named in `Batch.skipped`.

    Attributes:
      examples: number of examples in all sources together; one epoch, if the weights are proportional to the lengths.
      fingerprint: text that is equal for two pipelines with the same examples in the same order: names, lengths,
        contents and weights of the sources, seed and batch size. Parent folders of the data and the number of processes
        are ignored. Captions in tables and Arrow files count in full, images and tar files by sizes and by samples.

    Example:
      >>> from siglip_jax.assets import BUNDLED_MODEL, EXAMPLES
      >>> from siglip_jax.data import open_source
      >>> from siglip_jax.processing import SiglipProcessor
      >>> source = open_source(EXAMPLES, images_only=True)
      >>> transform = Transform(SiglipProcessor.from_pretrained(BUNDLED_MODEL), captions=False)
      >>> pipeline = Pipeline([(source, 1.0)], transform, batch_size=8)
      >>> batches = pipeline.batches(start=100)
      >>> next(batches).arrays["pixels"].shape
      (8, 64, 64, 3)
      >>> batches.close()
    """

    def __init__(
        self,
        sources: Sequence[tuple[Source, float]],
        transform: Transform,
        *,
        batch_size: int,
        lengths: Sequence[tuple[int, int]] = (),
        before: int = 0,
        seed: int = 0,
        workers: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        """Sets up the order; nothing is read.

        Args:
          sources: pairs of a source and its weight; the share of its rows is its weight divided by the sum of weights.
          transform: converts examples to arrays.
          batch_size: rows per step, of all processes together.
          lengths: for images of variable resolution: pairs (patches of an image, rows of a step, as `batch_size`). Of
            every n steps each of the n pairs has one, in random order. (): every step has `batch_size` rows, and images
            have the processor's number of patches.
          before: number of examples, of all processes together, that come before those of the first step.
          seed: seed of the order, the captions and the augmentation, 0 or more.
          workers: number of worker processes that read and decode; 0: threads of this process, one per core.
          process_index: index of this process, which gets the rows `process_index * n` to `(process_index + 1) * n - 1`
            of each batch, where n is the number of its rows divided by `process_count`.
          process_count: number of processes that share each batch.

        Raises:
          ValueError: if a source is empty, or a number is out of its range.
        """
        counts, weights = [len(source) for source, _ in sources], [weight for _, weight in sources]
        if not counts or min(counts) < 1:
            raise ValueError(f"sources must be one or more, each with examples, got the lengths {counts}")
        if not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"weights must be finite and above 0, got {weights}")
        if process_count < 1 or not 0 <= process_index < process_count:
            raise ValueError(f"process_index must be from 0 to {process_count - 1}, got {process_index}")
        for rows in (batch_size, *(rows for _, rows in lengths)):
            if rows < 1 or rows % process_count:
                raise ValueError(
                    f"batch_size must be a multiple of the {process_count} processes, got {rows}; "
                    "it counts the rows of all processes"
                )
        if workers < 0 or seed < 0:
            raise ValueError(f"workers and seed must be 0 or more, got {workers} and {seed}")
        if before < 0:
            raise ValueError(f"before must be 0 or more examples, got {before}")
        self.examples = sum(counts)
        self._sources, self._seed, self._batch_size = list(sources), seed, batch_size
        self._reader = _Reader([source for source, _ in sources], transform, Order(counts, weights, seed), seed)
        sizes = StepSizes(lengths or ((None, batch_size),), seed)
        self._places, self._workers = _Places(sizes, sizes.share(process_count), process_index, before), workers

    @functools.cached_property
    def fingerprint(self) -> str:
        """See the class; files are looked up and some examples are read when it is first used."""
        parts = [f"{_name(s)}:{len(s)}*{weight:g}:{fingerprint(s)[:16]}" for s, weight in self._sources]
        kinds = [f"{length}x{rows}" for length, rows in self._places.all.kinds if length is not None]
        return " ".join([*parts, f"seed={self._seed}", f"batch={self._batch_size}", *kinds])

    def batches(self, start: int = 0) -> Generator[Batch, None, None]:
        """Yields the batches of the steps from `start` on, without end.

        Closing or releasing the iterator ends the worker processes; `contextlib.closing` closes it however a loop ends.
        With workers, a script needs `if __name__ == "__main__":`, because each worker imports it.

        Args:
          start: step of the first batch, 0 or more.

        Raises:
          ValueError: if `start` is negative, or none of the 100 examples tried for one row is readable.
        """
        if start < 0:
            raise ValueError(f"start must be a step of 0 or more, got {start}")
        return self._batches(start)

    def _batches(self, start: int) -> Generator[Batch, None, None]:
        shared = self._workers > 0
        stack = _Stack(self._reader.transform)
        batches: Any
        if not shared:
            cores = _cores()
            options = grain.ReadOptions(num_threads=cores, prefetch_buffer_size=self._most_rows + cores)
            rows = grain.MapDataset.range(self._places.own.before(start), sys.maxsize).map(self._places)
            rows = iter(rows.map(self._reader).to_iter_dataset(options))
            batches = _Grouped(rows, self._places.own, start, stack)
        else:
            # Workers make whole batches, not rows, so that few and large objects are sent between processes.
            none_ahead = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            whole = _Whole(self._places, self._reader, stack)
            batches = grain.MapDataset.range(start, sys.maxsize).map(whole).to_iter_dataset(none_ahead)
            # Smaller arrays go through a pipe.
            smallest = _SMALLEST_SHARED if self._shared_memory_suffices() else sys.maxsize
            options = grain.experimental.DatasetOptions(min_shm_size=smallest)
            batches = grain.experimental.WithOptionsIterDataset(batches, options)
            _excuse_unread_flag()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(self._workers), worker_init_fn=_on_host)
        iterator = iter(batches)
        try:
            for batch in iterator:
                # Copied out of shared memory, which is scarce and must be released before the program ends.
                yield Batch({name: np.array(a) for name, a in batch.arrays.items()}, batch.skipped) if shared else batch
        finally:
            iterator.close()

    @property
    def _most_rows(self) -> int:
        """Rows of the largest batch of this process."""
        return max(rows for _, rows in self._places.own.kinds)

    def _shared_memory_suffices(self) -> bool:
        transform = self._reader.transform
        kinds = self._places.own.kinds
        largest = max(rows * transform.at(length).pixels_per_image for length, rows in kinds)
        batch = 4 * largest  # bytes of pixels (3 per pixel), and a third more
        held = 4 * (self._workers + 1)  # batches: in the making, waiting, or not released yet
        return not os.path.isdir(_SHARED) or shutil.disk_usage(_SHARED).free > held * batch


def ordered(source: Source, transform: Transform, batch_size: int) -> Iterator[Batch]:
    """Yields all examples of a source once, in order; only the last batch may be smaller.

    Unreadable examples are left out and named in the batch that they would have been in.

    Args:
      source: the examples.
      transform: converts examples to arrays.
      batch_size: rows per batch, 1 or more.

    Raises:
      ValueError: if no example is readable.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    cores = _cores()
    options = grain.ReadOptions(num_threads=cores, prefetch_buffer_size=batch_size + cores)
    rows = iter(grain.MapDataset.range(len(source)).map(_Once(source, transform)).to_iter_dataset(options))
    stack = _Stack(transform)
    waiting: list[_Read] = []
    skipped: list[str] = []
    try:
        for read in rows:
            if read.row is None:
                skipped += read.skipped
                continue
            if len(waiting) == batch_size:  # not sooner: the last batch also names the unreadable examples after it
                yield Batch(stack(waiting).arrays, tuple(skipped))
                waiting, skipped = [], []
            waiting.append(read)
        if not waiting:
            raise ValueError(
                f"{_name(source)}: one of {len(source)} examples must be readable, got errors for all; "
                f"the last: {skipped[-1]}"
            )
        yield Batch(stack(waiting).arrays, tuple(skipped))
    finally:
        rows.close()


def unreadable_of(source: Source, indices: Sequence[int], transform: Transform) -> list[str]:
    """Reads examples of a source, and returns name and reason of those that are unreadable.

    Args:
      source: the examples.
      indices: indices of the examples to read.
      transform: converts examples to arrays.
    """
    with concurrent.futures.ThreadPoolExecutor(_cores()) as threads:
        return [reason for read in threads.map(_Once(source, transform), indices) for reason in read.skipped]


@dataclass(frozen=True)
class _Places:
    """Maps the rows of this process, counted over all steps, to places in the order and lengths of sequences."""

    all: StepSizes
    own: StepSizes
    process_index: int
    first: int

    def __call__(self, row: int) -> tuple[int, int | None]:
        step, place = self.own.step_of(row)
        length, rows = self.own.at(step)
        return self.first + self.all.before(step) + self.process_index * rows + place, length


@dataclass(frozen=True)
class _Reader:
    """Reads the example at a place of the order, or a replacement if that is unreadable."""

    sources: Sequence[Source]
    transform: Transform
    order: Order
    seed: int

    def __call__(self, turn: tuple[int, int | None]) -> _Read:
        place, length = turn
        transform = self.transform.at(length)
        number, before = self.order.turn(place)
        skipped: list[str] = []
        for attempt in range(self.order.tries(number)):
            index = self.order.example(number, before, attempt)
            rng = np.random.default_rng((self.seed, place, attempt))
            row, reason = _read(self.sources[number], index, transform, rng)
            if row is not None:
                return _Read(row, index + sum(map(len, self.sources[:number])), tuple(skipped))
            skipped.append(reason)
        raise ValueError(
            f"{_name(self.sources[number])}: one of {len(skipped)} examples must be readable, got errors for all; "
            f"the last: {skipped[-1]}"
        )


@dataclass(frozen=True)
class _Once:
    """Reads an example of a source, or returns the reason why it is unreadable."""

    source: Source
    transform: Transform

    def __call__(self, index: int) -> _Read:
        row, reason = _read(self.source, index, self.transform, np.random.default_rng(index))
        return _Read(row, index, () if row is not None else (reason,))


@dataclass(frozen=True)
class _Stack:
    """Stacks rows to a batch."""

    transform: Transform

    def __call__(self, rows: Sequence[_Read], length: int | None = None) -> Batch:
        arrays = self.transform.at(length).stack([read.row for read in rows if read.row is not None])
        arrays["index"] = np.array([read.index for read in rows], np.int64)
        return Batch(arrays, tuple(name for read in rows for name in read.skipped))


@dataclass(frozen=True)
class _Whole:
    """Makes the batch of a step."""

    places: _Places
    reader: _Reader
    stack: _Stack

    def __call__(self, step: int) -> Batch:
        length, count = self.places.own.at(step)
        first = self.places.own.before(step)
        return self.stack([self.reader(self.places(first + i)) for i in range(count)], length)


class _Grouped:
    """Groups an endless iterator of rows to batches; `close` closes it."""

    def __init__(self, rows: Any, sizes: StepSizes, start: int, stack: _Stack) -> None:
        self._rows, self._sizes, self._step, self._stack = rows, sizes, start, stack

    def __iter__(self) -> "_Grouped":
        return self

    def __next__(self) -> Batch:
        length, count = self._sizes.at(self._step)
        self._step += 1
        return self._stack([next(self._rows) for _ in range(count)], length)

    def close(self) -> None:
        self._rows.close()


def _read(source: Source, index: int, transform: Transform, rng: np.random.Generator) -> tuple[Row | None, str]:
    """Returns the row of an example, or None and the reason why it is unreadable."""
    try:
        return transform.row(source[index], rng), ""
    except (OSError, ValueError) as error:
        return None, " ".join(str(error).split())


def _name(source: Source) -> str:
    return os.path.basename(os.path.normpath(getattr(source, "path", type(source).__name__)))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_host(worker: int, workers: int) -> None:
    """Keeps a worker process off the accelerator, which belongs to the process that trains."""
    jax.config.update("jax_platforms", "cpu")


def _excuse_unread_flag() -> None:
    """Lets Grain 0.2.17 and 0.2.18 start workers where absl has not parsed the command line (Grain's issue 1355)."""
    name = "grain_enable_multiprocess_worker_profiling"
    if name in absl.flags.FLAGS and not absl.flags.FLAGS.is_parsed():
        absl.flags.FLAGS[name].present = 1  # its default counts, as for Grain's other flags
