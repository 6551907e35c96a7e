"""The engine's input stream: one image or many, decoding ahead in threads, batches of a few fixed sizes."""

import concurrent.futures
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

Item = TypeVar("Item")
Result = TypeVar("Result")
Array = np.ndarray | jax.Array
Arrays = tuple[Array, ...]  # the inputs of the model for a row, or for a batch of rows


def as_texts(texts: object, name: str = "texts") -> tuple[str, ...]:
    """Returns the texts as a tuple; a single string is one text, not its characters.

    Args:
      texts: one string or an iterable of strings.
      name: name of the argument, for the error.

    Raises:
      ValueError: if `texts` is not a string or an iterable of strings.
    """
    if isinstance(texts, str):
        return (texts,)
    if not isinstance(texts, Iterable):
        raise ValueError(f"{name} must be a string or an iterable of strings, got {type(texts).__name__}")
    found = tuple(texts)
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise ValueError(f"{name} must be strings, got {type(text).__name__} {text!r} at position {i}")
    return found


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int
) -> Iterator[concurrent.futures.Future[Result]]:
    """Yields a future of `work(item)` for each item, in order, while threads work ahead of the consumer.

    Args:
      work: function of an item; its exceptions are raised by the future.
      items: iterable of items, which may be endless: it is read at most `ahead` items before the consumer.
      workers: number of threads.
      ahead: largest number of items that are in progress or done before the consumer asks for them.
    """
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    pending: deque[concurrent.futures.Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > ahead:
                yield pending.popleft()
        while pending:
            yield pending.popleft()
    finally:
        # Without waiting: the garbage collector may close the generator, even in one of the pool's own threads.
        pool.shutdown(wait=False, cancel_futures=True)


def batches(rows: Iterable[Arrays], batch_size: int) -> Iterator[Arrays]:
    """Yields batches of `batch_size` stacked rows; the last batch may be shorter."""
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == batch_size:
            yield stacked(batch)
            batch = []
    if batch:
        yield stacked(batch)


def slices(arrays: Arrays, batch_size: int) -> Iterator[Arrays]:
    """Yields batches of `batch_size` rows of arrays with equally many rows; the last batch may be shorter."""
    for start in range(0, len(arrays[0]), batch_size):
        yield tuple(array[start : start + batch_size] for array in arrays)


def stacked(rows: list[Arrays]) -> Arrays:
    """Returns a batch: the corresponding arrays of all rows, stacked on a new first axis."""
    return tuple(np.stack(arrays) for arrays in zip(*rows, strict=True))


def padded(batch: Shaped[Array, "rows ..."], batch_size: int, fewest: int = 1) -> Shaped[Array, "padded ..."]:
    """Returns a batch with zero rows appended, so that a jitted function sees at most log2(batch_size) + 2 shapes.

    Args:
      batch: array of 1 to `batch_size` rows, in host memory or on a device, where it stays.
      batch_size: largest number of rows of the result; below it, the next power of two is used.
      fewest: smallest number of rows of the result.
    """
    size = max(fewest, min(batch_size, 1 << (len(batch) - 1).bit_length()))
    if size == len(batch):
        return batch
    pad = jnp.pad if isinstance(batch, jax.Array) else np.pad
    return pad(batch, [(0, size - len(batch))] + [(0, 0)] * (batch.ndim - 1))
