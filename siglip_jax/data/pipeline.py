"""Batches for training: each a pure function of its step, whatever the workers, the processes and the place to start.

Reading ahead is Grain's: threads of this process, or worker processes. An example that cannot be used is replaced and
named in its batch, and no other row changes.
"""

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
from siglip_jax.data.order import Order
from siglip_jax.data.transform import Row, Transform

grain: Any = import_optional("grain", "the input pipeline", "data")

_SHARED = "/dev/shm"  # where arrays of worker processes lie; containers often have 64 MB of it
_SMALLEST_SHARED = 2**16  # bytes of an array


class Batch(NamedTuple):
    """What a step takes.

    Attributes:
      arrays: this process's rows: `pixels` (rows, height, width, 3) uint8, `index` (rows,) int64, the number of the
        example counted over all sources, and as wanted `input_ids` (rows, positions) and `label` (rows,), int32.
      skipped: the examples that could not be used, "name: reason".
    """

    arrays: dict[str, Shaped[np.ndarray, "rows ..."]]
    skipped: tuple[str, ...]


class _Read(NamedTuple):
    """A place of the order with what was read for it; no row if that was not to be."""

    row: Row | None
    index: int
    skipped: tuple[str, ...]


class Pipeline:
    """An endless sequence of batches from one source or a mixture.

    Attributes:
      examples: in all sources together: one epoch, if the weights are in proportion to the lengths.
      fingerprint: says whether two runs see the same examples in the same order: names, lengths and weights of the
        sources, seed and batch size. Folders above the data do not count, nor does the number of processes.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Source, float]],
        transform: Transform,
        *,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        """Sets up the order; nothing is read.

        Args:
          sources: each with its weight: its share of the rows is its weight over their sum.
          batch_size: rows of a step over all processes.
          workers: processes that read and decode; 0 are threads in this one, as many as there are cores.
          process_index, process_count: this process takes rows i·b to (i+1)·b of each batch, b the rows per process.

        Raises:
          ValueError: for numbers that make no sense.
        """
        lengths, weights = [len(source) for source, _ in sources], [weight for _, weight in sources]
        if not lengths or min(lengths) < 1:
            raise ValueError(f"expected at least one source with examples, found sources of the lengths {lengths}")
        if not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"weights: expected numbers above 0, found {weights}")
        if process_count < 1 or not 0 <= process_index < process_count:
            raise ValueError(f"process_index: expected 0 to {process_count - 1}, found {process_index}")
        if batch_size < 1 or batch_size % process_count:
            raise ValueError(
                f"batch_size: expected a multiple of the {process_count} processes, found {batch_size}; "
                "it counts the rows of all of them"
            )
        if workers < 0 or seed < 0:
            raise ValueError(f"workers and seed: expected 0 or more, found {workers} and {seed}")
        self.examples = sum(lengths)
        named = zip(sources, lengths, strict=True)
        parts = [f"{_name(source)}:{length}*{weight:g}" for (source, weight), length in named]
        self.fingerprint = f"{' '.join(parts)} seed={seed} batch={batch_size}"
        self._reader = _Reader([source for source, _ in sources], transform, Order(lengths, weights, seed), seed)
        self._rows, self._workers = batch_size // process_count, workers
        self._places = _Places(self._rows, batch_size, process_index * self._rows)

    def batches(self, start: int = 0) -> Generator[Batch, None, None]:
        """Yields the batches of the steps from `start` on, without end.

        Closing the iterator, or letting go of it, ends the worker processes; `contextlib.closing` does so however a
        loop ends. With workers, a script needs `if __name__ == "__main__":`, because each of them imports it.

        Raises:
          ValueError: if none of a hundred examples of a source can be used.
        """
        if start < 0:
            raise ValueError(f"start: expected a step, 0 or more, found {start}")
        return self._batches(start)

    def _batches(self, start: int) -> Generator[Batch, None, None]:
        shared = self._workers > 0
        rows = grain.MapDataset.range(start * self._rows, sys.maxsize).map(self._places).map(self._reader)
        stack = _Stack(self._reader.transform)
        if not shared:
            cores = _cores()
            options = grain.ReadOptions(num_threads=cores, prefetch_buffer_size=self._rows + cores)
            batches = rows.to_iter_dataset(options).batch(self._rows, batch_fn=stack)
        else:
            # Batches are dealt out, not rows, so that what travels between processes is few and large.
            none_ahead = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            batches = rows.batch(self._rows, batch_fn=stack).to_iter_dataset(none_ahead)
            smallest = _SMALLEST_SHARED if self._shared_memory_suffices() else sys.maxsize  # others go through a pipe
            options = grain.experimental.DatasetOptions(min_shm_size=smallest)
            batches = grain.experimental.WithOptionsIterDataset(batches, options)
            _excuse_unread_flag()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(self._workers), worker_init_fn=_on_host)
        iterator = iter(batches)
        try:
            for batch in iterator:
                # Out of shared memory, which is little and would have to be given back before the program ends.
                yield Batch({name: np.array(a) for name, a in batch.arrays.items()}, batch.skipped) if shared else batch
        finally:
            iterator.close()

    def _shared_memory_suffices(self) -> bool:
        transform = self._reader.transform
        batch = 4 * self._rows * transform.height * transform.width  # bytes of pixels, and as much again for a third
        held = 4 * (self._workers + 1)  # batches: made, waiting, and not let go of yet
        return not os.path.isdir(_SHARED) or shutil.disk_usage(_SHARED).free > held * batch


def ordered(source: Source, transform: Transform, batch_size: int) -> Iterator[Batch]:
    """Yields all examples of a source once, in order; only the last batch may be smaller.

    What cannot be read is left out and named in the batch where it would have been.

    Raises:
      ValueError: if nothing can be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected 1 or more, found {batch_size}")
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
            if len(waiting) == batch_size:  # not sooner: the last batch names what follows it
                yield Batch(stack(waiting).arrays, tuple(skipped))
                waiting, skipped = [], []
            waiting.append(read)
        if not waiting:
            raise ValueError(f"{_name(source)}: none of {len(source)} examples can be used; the last: {skipped[-1]}")
        yield Batch(stack(waiting).arrays, tuple(skipped))
    finally:
        rows.close()


@dataclass(frozen=True)
class _Places:
    """From the rows of this process, counted over all steps, to places in the order."""

    rows: int
    batch_size: int
    first: int

    def __call__(self, row: int) -> int:
        step, place = divmod(row, self.rows)
        return step * self.batch_size + self.first + place


@dataclass(frozen=True)
class _Reader:
    """Reads the example at a place of the order, or another in its stead."""

    sources: Sequence[Source]
    transform: Transform
    order: Order
    seed: int

    def __call__(self, place: int) -> _Read:
        number, before = self.order.turn(place)
        skipped: list[str] = []
        for attempt in range(self.order.tries(number)):
            index = self.order.example(number, before, attempt)
            rng = np.random.default_rng((self.seed, place, attempt))
            row, reason = _read(self.sources[number], index, self.transform, rng)
            if row is not None:
                return _Read(row, index + sum(map(len, self.sources[:number])), tuple(skipped))
            skipped.append(reason)
        raise ValueError(
            f"{_name(self.sources[number])}: none of {len(skipped)} examples can be used; the last: {skipped[-1]}"
        )


@dataclass(frozen=True)
class _Once:
    """Reads an example of a source, or says why not."""

    source: Source
    transform: Transform

    def __call__(self, index: int) -> _Read:
        row, reason = _read(self.source, index, self.transform, np.random.default_rng(index))
        return _Read(row, index, () if row is not None else (reason,))


@dataclass(frozen=True)
class _Stack:
    """Makes a batch of rows."""

    transform: Transform

    def __call__(self, rows: Sequence[_Read]) -> Batch:
        arrays = self.transform.stack([read.row for read in rows if read.row is not None])
        arrays["index"] = np.array([read.index for read in rows], np.int64)
        return Batch(arrays, tuple(name for read in rows for name in read.skipped))


def _read(source: Source, index: int, transform: Transform, rng: np.random.Generator) -> tuple[Row | None, str]:
    """Returns the row, or why there is none."""
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
    """Lets Grain 0.2.17 and 0.2.18 start workers where absl did not read the command line (Grain's issue 1355)."""
    name = "grain_enable_multiprocess_worker_profiling"
    if name in absl.flags.FLAGS and not absl.flags.FLAGS.is_parsed():
        absl.flags.FLAGS[name].present = 1  # its default counts, as for Grain's other flags
