"""Embeds batches of items as one stream: threads read and prepare them ahead of the device, so that it never waits.

A batch is computed the same way whatever precedes it, so its bits do not depend on where the stream began.
"""

import itertools
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from siglip_jax.inference.encoder import NotFiniteError, not_finite
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.stream import Arrays, in_threads, stacked
from siglip_jax.search.items import TEXTS, Items

Batches = Iterable[Sequence[int]]


class Rows(NamedTuple):
    """The result of a batch.

    Attributes:
      embeds: L2-normalised embeddings of the readable items, (rows, E) float32.
      numbers: indices of the readable items, one for each row.
      errors: errors of the unreadable items, by index.
    """

    embeds: Float[np.ndarray, "rows embed"]
    numbers: list[int]
    errors: dict[int, Exception]


class _Ready(NamedTuple):
    """A batch that is prepared for the device."""

    arrays: Arrays | None  # None if no item could be read
    numbers: list[int]
    errors: dict[int, Exception]


def embed_batches(siglip: Siglip, items: Items, batches: Batches, batch_size: int) -> Iterator[Rows]:
    """Yields the embeddings of batches of items; each batch is dispatched before the previous one is waited for.

    Args:
      siglip: model to embed with.
      items: images or texts to embed.
      batches: indices of the items of each batch, at most `batch_size`.
      batch_size: rows of the compiled program; a smaller batch is padded.

    Yields:
      The result of each batch, in order.

    Raises:
      ValueError: if an embedding is not finite.
    """
    if items.kind == TEXTS:
        encoder = siglip.text_encoder
        prepare, stack = items.read, siglip.tokens
    else:
        encoder = siglip.image_encoder
        prepare, stack = lambda number: siglip.pixels(items.read(number)), stacked
    running: deque[tuple[Any, _Ready]] = deque()
    for ready in _prepared(prepare, stack, batches, batch_size, siglip.choices.threads):
        result = None
        if ready.arrays is not None:
            result = encoder(ready.arrays, batch_size)
        running.append((result, ready))
        if len(running) > 1:
            yield _rows(*running.popleft(), encoder.width, items)
    for result, ready in running:
        yield _rows(result, ready, encoder.width, items)


def _prepared(
    prepare: Callable[[int], Any], stack: Callable[[list[Any]], Arrays], batches: Batches, batch_size: int, workers: int
) -> Iterator[_Ready]:
    """Yields batches of read, prepared and stacked items."""

    def attempt(task: tuple[int, int]) -> tuple[int, int, Any, Exception | None]:
        batch, number = task
        try:
            return batch, number, prepare(number), None
        except (OSError, ValueError) as error:
            return batch, number, None, error

    tasks = ((i, number) for i, batch in enumerate(batches) for number in batch)
    futures = in_threads(attempt, tasks, workers=workers, ahead=max(2 * batch_size, workers))
    for _, group in itertools.groupby((future.result() for future in futures), key=operator.itemgetter(0)):
        done = list(group)
        read = [(number, value) for _, number, value, error in done if error is None]
        errors = {number: error for _, number, _, error in done if error is not None}
        arrays = stack([value for _, value in read]) if read else None
        yield _Ready(arrays, [number for number, _ in read], errors)


def _rows(result: Any, ready: _Ready, width: int, items: Items) -> Rows:
    """Waits for a batch and returns its result without the rows of padding."""
    embeds = np.zeros((0, width)) if result is None else np.asarray(result)[: len(ready.numbers)]
    embeds = embeds.astype(np.float32)
    for row in not_finite(embeds):
        raise NotFiniteError(items.name(ready.numbers[row]))
    return Rows(embeds, ready.numbers, ready.errors)
