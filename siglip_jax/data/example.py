"""The common interface of all data sets: examples that are read by their index."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8


class Example(NamedTuple):
    """An image with its captions and its label.

    Attributes:
      image: bytes of an encoded image file, or RGB pixels, (height, width, 3) uint8.
      texts: captions of the image; () where the data set has none for it.
      label: index of the image's class in `Source.classes`; None where the image has no label.
      name: where the example is stored, for messages: "shard-000.tar:0017.jpg", "pairs.jsonl:12".
      boxes: parts of the image, (n, 4) numbers from 0 to 1: left, top, right and bottom of each as shares of width and
        height; None where the data set has none for it.
      box_captions: caption of each box.

    Example:
      >>> example = Example(np.zeros((48, 64, 3), np.uint8), ("a black image",), None, "pairs.jsonl:12")
      >>> example.texts
      ('a black image',)
    """

    image: bytes | UInt8[np.ndarray, "height width 3"]
    texts: tuple[str, ...]
    label: int | None
    name: str
    boxes: Any = None
    box_captions: Sequence[str] = ()


def image_id(image: Any) -> int:
    """Returns a hash of an image, 64 bits: images of the same bytes, or of the same pixels, are one image.

    Args:
      image: bytes of an encoded image file, or pixels.
    """
    digest = hashlib.blake2b(digest_size=8)
    if not isinstance(image, (bytes, bytearray, memoryview)):
        image = np.ascontiguousarray(image)
        digest.update(repr((image.shape, image.dtype.str)).encode())
        image = image.view(np.uint8)
    digest.update(image)
    return int.from_bytes(digest.digest(), "little")


@runtime_checkable
class Source(Protocol):
    """A data set of examples in a fixed order with random access.

    Any object with these members is a source; `open_source` returns one for the usual kinds of data sets. Several
    threads read from a source at the same time, and a `Pipeline` with worker processes pickles it. A source whose
    examples have no boxes says so with `has_boxes = False`.

    Attributes:
      classes: names of the classes that labels refer to; () where there are no labels.

    Example:
      >>> class Squares:
      ...     classes = ("black", "white")
      ...
      ...     def __len__(self):
      ...         return 2
      ...
      ...     def __getitem__(self, index):
      ...         pixels = np.full((64, 64, 3), 255 * index, np.uint8)
      ...         return Example(pixels, (f"a {self.classes[index]} square",), index, f"square {index}")
      >>> isinstance(Squares(), Source)
      True
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that labels refer to; () where there are no labels."""
        ...

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Reads one example.

        Args:
          index: which example, 0 to `len(self) - 1`.

        Returns:
          The example, with the image still encoded or already as pixels.

        Raises:
          OSError, ValueError: if the example is unreadable; callers then skip it.
        """
        ...
