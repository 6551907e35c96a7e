"""What every kind of data set gives: examples by their number."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8


class Example(NamedTuple):
    """An image and what is said of it.

    Attributes:
      image: an encoded image file, or pixels; `locked` puts embeddings there.
      texts: its captions; empty where there are only labels.
      label: a position in the classes of the source, or None.
      name: where it lies, for messages: "shard-000.tar:0017.jpg", "pairs.jsonl:12".
    """

    image: bytes | UInt8[np.ndarray, "height width 3"]
    texts: tuple[str, ...]
    label: int | None
    name: str


@runtime_checkable
class Source(Protocol):
    """Examples in a fixed order, each to be had by its number in any order."""

    classes: tuple[str, ...]  # names of the labels; empty where there are none

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Reads one.

        Raises:
          OSError, ValueError: if it cannot be read.
        """
        ...
