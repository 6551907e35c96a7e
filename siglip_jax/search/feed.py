"""Batches of items through a model in one stream: read and prepared in threads ahead of the device, which never waits.

A batch is computed the same way whatever came before it, so its bits do not depend on where a stream began.
"""

import itertools
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.stream import Arrays, in_threads, stacked
from siglip_jax.search.items import TEXTS, Items

Batches = Iterable[Sequence[int]]


class Rows(NamedTuple):
    """What came of a batch.

    Attributes:
      embeds: L2-normalised, of the items that could be read.
      numbers: of these.
      errors: of the others, by number.
    """

    embeds: Float[np.ndarray, "rows embed"]
    numbers: list[int]
    errors: dict[int, Exception]


class _Ready(NamedTuple):
    arrays: Arrays | None  # None where nothing could be read
    numbers: list[int]
    errors: dict[int, Exception]


def embed_batches(siglip: Siglip, items: Items, batches: Batches, batch_size: int) -> Iterator[Rows]:
    """Yields the embeddings of batches of items; the next batch is given to the device before one is waited for.

    Args:
      batches: numbers of items, at most `batch_size` in each.

    Raises:
      ValueError: if the model gives embeddings that are not finite.
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
            yield _rows(*running.popleft(), encoder.width)
    for result, ready in running:
        yield _rows(result, ready, encoder.width)


def _prepared(
    prepare: Callable[[int], Any], stack: Callable[[list[Any]], Arrays], batches: Batches, batch_size: int, workers: int
) -> Iterator[_Ready]:
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


def _rows(result: Any, ready: _Ready, width: int) -> Rows:
    embeds = np.zeros((0, width)) if result is None else np.asarray(result)[: len(ready.numbers)]
    embeds = embeds.astype(np.float32)
    if not np.isfinite(embeds).all():
        raise ValueError("expected finite embeddings of the model, found others; a dtype of more range may help")
    return Rows(embeds, ready.numbers, ready.errors)
