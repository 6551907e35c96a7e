"""Embeddings of all images and texts of a data set; images are read and decoded in threads ahead of the device."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from siglip_jax._callbacks import OnUnreadable, naming
from siglip_jax.data.example import Source
from siglip_jax.evaluation.neighbours import check_finite
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.stream import in_threads

TEXTS = 1024  # texts that are embedded between two reports of progress


class Embedded(NamedTuple):
    """Embeddings of the readable images of a source, with their labels and texts.

    Attributes:
      embeds: L2-normalised embeddings of the images, (n, E).
      numbers: index of each image in the source, (n,).
      labels: label of each image, (n,); -1 where it has none.
      texts: captions of each image.
      unreadable: number of unreadable images.
    """

    embeds: Float[np.ndarray, "n embed"]
    numbers: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    texts: list[tuple[str, ...]]
    unreadable: int

    def with_labels(self) -> "Embedded":
        """Returns the images that have labels."""
        kept = np.flatnonzero(self.labels >= 0)
        texts = [self.texts[i] for i in kept]
        return Embedded(self.embeds[kept], self.numbers[kept], self.labels[kept], texts, self.unreadable)


def embed_examples(
    siglip: Siglip,
    source: Source,
    *,
    numbers: Sequence[int] | None = None,
    batch_size: int | None = None,
    on_unreadable: OnUnreadable | None = None,
    advance: Callable[[int], object] = lambda amount: None,
) -> Embedded:
    """Embeds the images of a source; unreadable ones are left out.

    Args:
      siglip: the model.
      source: the examples.
      numbers: indices of the examples to embed; None: all.
      batch_size: images per forward pass; None: the size that suits model and device.
      on_unreadable: called with (index in the source, error) for each unreadable image.
      advance: called with the number of images read since the last call.

    Raises:
      ValueError: if no image is readable, or the model returns embeddings that are not finite.
    """
    numbers = range(len(source)) if numbers is None else numbers
    read: list[tuple[int, str, int, tuple[str, ...]]] = []
    lost: set[int] = set()
    failures: list[Exception] = []

    def report(index: int, name: str, error: Exception) -> None:
        failures.append(error)
        if on_unreadable is not None:
            on_unreadable(index, naming(name, error))

    def images() -> Iterator[Any]:
        workers = siglip.choices.threads
        reading = in_threads(source.__getitem__, numbers, workers=workers, ahead=4 * workers)
        for number, future in zip(numbers, reading, strict=True):
            advance(1)
            try:
                example = future.result()
            except (OSError, ValueError) as error:
                report(number, f"number {number}", error)
                continue
            read.append((number, example.name, -1 if example.label is None else example.label, example.texts))
            yield example.image

    def undecodable(position: int, error: Exception) -> None:
        lost.add(position)
        report(*read[position][:2], error)

    embeds = siglip.encode_image(images(), batch_size=batch_size, on_unreadable=undecodable)
    kept = [position for position in range(len(read)) if position not in lost]
    if not kept:
        first = f"; the first error: {failures[0]}" if failures else ""
        raise ValueError(f"one or more images must be readable, got none among {len(numbers)}{first}")
    embeds = embeds[kept]
    check_finite(embeds, "the model's image embeddings")
    return Embedded(
        embeds,
        np.array([read[i][0] for i in kept], np.int64),
        np.array([read[i][2] for i in kept], np.int64),
        [read[i][3] for i in kept],
        len(failures),
    )


def embed_texts(
    siglip: Siglip,
    texts: Sequence[str],
    *,
    batch_size: int | None = None,
    advance: Callable[[int], object] = lambda amount: None,
) -> Float[np.ndarray, "texts embed"]:
    """Embeds texts; a text that occurs several times is embedded once.

    Args:
      siglip: the model.
      texts: the texts.
      batch_size: texts per forward pass; None: the size that suits model and device.
      advance: called with the number of different texts embedded since the last call.

    Raises:
      ValueError: if the model returns embeddings that are not finite.
    """
    numbers = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    different = list(numbers)
    parts = [siglip.encode_text([], batch_size=batch_size)]
    for start in range(0, len(different), TEXTS):
        part = different[start : start + TEXTS]
        parts.append(siglip.encode_text(part, batch_size=batch_size))
        advance(len(part))
    embeds = np.concatenate(parts)
    check_finite(embeds, "the model's text embeddings")
    return embeds[np.array([numbers[text] for text in texts], np.int64)]


def spread(count: int, limit: int | None) -> Sequence[int]:
    """Returns `limit` evenly spaced indices below `count`, or all; sources are often sorted, so not the first ones."""
    return range(count) if limit is None or limit >= count else [i * count // limit for i in range(limit)]
