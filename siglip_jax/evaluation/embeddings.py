"""Embeddings of all images and texts of a data set; images are read and decoded in threads ahead of the device."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from siglip_jax._callbacks import OnUnreadable, naming
from siglip_jax.data.example import Source, image_id
from siglip_jax.inference.encoder import NotFiniteError
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.stream import in_threads

TEXTS = 1024  # texts that are embedded between two reports of progress


class _Row(NamedTuple):
    """An example that was read; rows of the same image share its place among those that are embedded."""

    number: int
    name: str
    label: int
    texts: tuple[str, ...]
    place: int


class Embedded(NamedTuple):
    """Embeddings of the readable images of a source, with their labels and texts.

    Attributes:
      embeds: L2-normalised embeddings of the images, (n, E).
      numbers: index of each image in the source, (n,).
      labels: label of each image, (n,); -1 where it has none.
      texts: captions of each image.
      unreadable: number of unreadable images.
      images: index of the first row with the same image, of the same bytes or pixels, (n,).
    """

    embeds: Float[np.ndarray, "n embed"]
    numbers: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    texts: list[tuple[str, ...]]
    unreadable: int
    images: Int[np.ndarray, " n"]

    def with_labels(self) -> "Embedded":
        """Returns the images that have labels."""
        return self._of(np.flatnonzero(self.labels >= 0))

    def merged(self) -> "Embedded":
        """Returns one row for each different image, with the texts of all rows that show it."""
        texts: dict[int, tuple[str, ...]] = {}
        for image, own in zip(self.images.tolist(), self.texts, strict=True):
            texts[image] = texts.get(image, ()) + own
        return self._of(np.array(list(texts)))._replace(texts=list(texts.values()))

    def _of(self, rows: Int[np.ndarray, " kept"]) -> "Embedded":
        texts = [self.texts[i] for i in rows]
        _, first, images = np.unique(self.images[rows], return_index=True, return_inverse=True)
        kept = self.embeds[rows], self.numbers[rows], self.labels[rows], texts, self.unreadable
        return Embedded(*kept, first[images])


def embed_examples(
    siglip: Siglip,
    source: Source,
    *,
    numbers: Sequence[int] | None = None,
    batch_size: int | None = None,
    on_unreadable: OnUnreadable | None = None,
    advance: Callable[[int], object] = lambda amount: None,
) -> Embedded:
    """Embeds the images of a source, each different one once; unreadable ones are left out.

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
    rows: list[_Row] = []
    places: dict[int, int] = {}  # hash of an image to its place among those that are embedded
    heads: list[_Row] = []  # first row of each place
    lost: dict[int, Exception] = {}
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
            key = image_id(example.image)
            new = key not in places
            place = places.setdefault(key, len(places))
            label = -1 if example.label is None else example.label
            rows.append(_Row(number, example.name, label, example.texts, place))
            if new:
                heads.append(rows[-1])
                yield example.image

    def undecodable(place: int, error: Exception) -> None:
        if isinstance(error, NotFiniteError):  # a fault of the model: metrics of the other images would mislead
            raise NotFiniteError(heads[place].name)
        lost[place] = error
        report(heads[place].number, heads[place].name, error)

    embeds = siglip.encode_image(images(), batch_size=batch_size, on_unreadable=undecodable)
    for row in rows:
        if row.place in lost and row is not heads[row.place]:
            report(row.number, row.name, lost[row.place])
    kept = [row for row in rows if row.place not in lost]
    if not kept:
        first = f"; the first error: {failures[0]}" if failures else ""
        raise ValueError(f"one or more images must be readable, got none among {len(numbers)}{first}")
    shown = np.array([row.place for row in kept], np.int64)
    embeds = embeds[shown]
    _, first_of, inverse = np.unique(shown, return_index=True, return_inverse=True)
    return Embedded(
        embeds,
        np.array([row.number for row in kept], np.int64),
        np.array([row.label for row in kept], np.int64),
        [row.texts for row in kept],
        len(failures),
        first_of[inverse],
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
    return embeds[np.array([numbers[text] for text in texts], np.int64)]


def spread(count: int, limit: int | None) -> Sequence[int]:
    """Returns `limit` evenly spaced indices below `count`, or all; sources are often sorted, so not the first ones."""
    return range(count) if limit is None or limit >= count else [i * count // limit for i in range(limit)]


def spread_images(source: Source, limit: int | None) -> Sequence[int]:
    """Returns the rows of `limit` evenly spaced images, or all; without names of images, each row counts as one.

    Args:
      source: the examples; its `image_numbers`, if it has any, say which rows name the same image.
      limit: number of images; None: all.
    """
    images = getattr(source, "image_numbers", None)
    if limit is None or images is None:
        return spread(len(source), limit)
    chosen = np.zeros(int(images.max(initial=-1)) + 1, bool)
    chosen[list(spread(len(chosen), limit))] = True
    return np.flatnonzero(chosen[images]).tolist()
