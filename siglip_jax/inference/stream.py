"""The plumbing of the engine: what counts as one image, decoding ahead in threads, batches of a few fixed sizes."""

import concurrent.futures
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Shaped

Item = TypeVar("Item")
Result = TypeVar("Result")
Array = np.ndarray | jax.Array
Arrays = tuple[Array, ...]  # what the model takes of a row, or of a batch of rows


def is_one_image(images: object) -> bool:
    """Says whether `images` is a single image: a path, URL, bytes, PIL image, or an array of at most 3 axes."""
    if isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | PIL.Image.Image):
        return True
    kind = getattr(getattr(images, "dtype", None), "kind", None)  # an array of paths is not an image
    return kind in tuple("biuf") and getattr(images, "ndim", 4) < 4


def as_images(images: object) -> Iterable[object]:
    """Returns an iterable of images, whether one or many were given; an array of 4 axes is a batch.

    Raises:
      ValueError: if it is neither an image nor an iterable.
    """
    if is_one_image(images):
        return (images,)
    if not isinstance(images, Iterable):
        expected = "an image (path, URL, bytes, PIL image or array) or an iterable of them"
        raise ValueError(f"images must be {expected}, got {type(images).__name__}")
    return images


def as_texts(texts: object, name: str = "texts") -> tuple[str, ...]:
    """Returns the texts as a tuple; a lone string is one text, not its characters.

    Raises:
      ValueError: if it is not a string or an iterable of strings; the message calls it `name`.
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
    """Yields a future of `work(item)` per item, in order, while threads work at most `ahead` items before the consumer.

    `items` may be endless: it is never read further than that.
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
        # Nobody waits: the generator may be closed by the garbage collector, and that in one of the pool's own threads.
        pool.shutdown(wait=False, cancel_futures=True)


def batches(rows: Iterable[Arrays], batch_size: int) -> Iterator[Arrays]:
    """Stacks the arrays of `batch_size` rows, each with each; the last batch may be shorter."""
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == batch_size:
            yield stacked(batch)
            batch = []
    if batch:
        yield stacked(batch)


def slices(arrays: Arrays, batch_size: int) -> Iterator[Arrays]:
    """Cuts arrays of equally many rows into batches; the last may be shorter."""
    for start in range(0, len(arrays[0]), batch_size):
        yield tuple(array[start : start + batch_size] for array in arrays)


def stacked(rows: list[Arrays]) -> Arrays:
    """Stacks the arrays of rows, each with each."""
    return tuple(np.stack(arrays) for arrays in zip(*rows, strict=True))


def padded(batch: Shaped[Array, "rows ..."], batch_size: int, fewest: int = 1) -> Shaped[Array, "padded ..."]:
    """Appends zero rows up to the next power of two, to `fewest` where that is more, to `batch_size` where less.

    A jitted function then sees at most log2(batch_size) + 2 shapes, whatever the number of rows. An array on a device
    stays there.
    """
    size = max(fewest, min(batch_size, 1 << (len(batch) - 1).bit_length()))
    if size == len(batch):
        return batch
    pad = jnp.pad if isinstance(batch, jax.Array) else np.pad
    return pad(batch, [(0, size - len(batch))] + [(0, 0)] * (batch.ndim - 1))
