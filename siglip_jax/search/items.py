"""What is to be embedded: images of a folder or a data set, or the lines of a text file, each with a lasting name."""

import functools
import hashlib
import os
from array import array
from typing import Any, Protocol, runtime_checkable

IMAGES, TEXTS = "images", "texts"


@runtime_checkable
class Items(Protocol):
    """Images or texts in a fixed order.

    Attributes:
      kind: `IMAGES` or `TEXTS`.
      path: where they lie, absolute.
      options: what else chose them, as JSON takes it.
    """

    kind: str
    path: str
    options: dict[str, str | None]

    def __len__(self) -> int:
        """How many there are."""
        ...

    @property
    def fingerprint(self) -> str:
        """Differs where the items do."""
        ...

    def name(self, index: int) -> str:
        """Returns what one is called: "cats/one.png", "shard-000.tar:0017.jpg", "queries.txt:12"."""
        ...

    def read(self, index: int) -> Any:
        """Returns one: a string, or an image as `load_image` takes it.

        Raises:
          OSError, ValueError: if it cannot be read.
        """
        ...


class Images:
    """Those of a folder, tar shards, Parquet, Arrow, or a table beside images.

    The fingerprint is one of names, sizes and times of the files.
    """

    kind = IMAGES

    def __init__(self, path: str, image_key: str | None = None, split: str | None = None) -> None:
        """Lists them.

        Args:
          image_key, split: as in `siglip_jax.data.open.open_source`.

        Raises:
          OSError: if there is nothing.
          ValueError: if nothing is recognised, or pyarrow is missing.
        """
        from siglip_jax.data.open import open_source  # needs the extra `data`, which a file of texts does not

        self._source = open_source(path, image_key=image_key, split=split, images_only=True)
        self.path, self.options = os.path.abspath(path), {"image_key": image_key, "split": split}

    def __len__(self) -> int:
        return len(self._source)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Differs where names, sizes or times of the files do; asks the file system for each of them."""
        digest = hashlib.sha256()
        for name, path in self._source.files():
            digest.update(f"{name}\0{_state(path)}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def name(self, index: int) -> str:
        """See `Items`."""
        return self._source.name(index)

    def read(self, index: int) -> Any:
        """See `Items`."""
        return self._source[index].image


class Texts:
    """The lines of a text file in UTF-8; blank ones do not count. The fingerprint is one of its contents."""

    kind = TEXTS
    options: dict[str, str | None] = {}

    def __init__(self, path: str) -> None:
        """Finds the lines; memory is needed for their places only.

        Raises:
          OSError: if it cannot be read.
          ValueError: if there are no lines.
        """
        self.path = os.path.abspath(path)
        self._file = os.path.basename(path)
        self._places = array("q")  # of each line: its number, counted from 1, where it begins, and its length, in bytes
        digest, start = hashlib.sha256(), 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                if line.strip():
                    self._places.extend((number, start, len(line)))
                start += len(line)
        self.fingerprint = digest.hexdigest()
        if not self._places:
            raise ValueError(f"{path}: expected a text in each line, found none")

    def __len__(self) -> int:
        return len(self._places) // 3

    def name(self, index: int) -> str:
        """See `Items`."""
        return f"{self._file}:{self._places[3 * index]}"

    def read(self, index: int) -> str:
        """See `Items`."""
        _, start, length = self._places[3 * index : 3 * index + 3]
        with open(self.path, "rb") as file:
            file.seek(start)
            data = file.read(length)
        try:
            return data.decode("utf-8").removeprefix("\ufeff").strip()
        except UnicodeDecodeError:
            raise ValueError(f"{self.name(index)}: expected text in UTF-8, found other bytes") from None


def open_items(path: str | os.PathLike[str], *, image_key: str | None = None, split: str | None = None) -> Items:
    """Opens what lies at a path: the texts of a `.txt`, or else images.

    Args:
      image_key: the column, key or ending of the images; by default the usual names are looked for.
      split: the part to take, where folders or files are named after parts.

    Raises:
      OSError: if there is nothing, or it cannot be read.
      ValueError: if nothing is recognised, an option does not fit, or a package is missing.
    """
    name = os.fspath(path)
    if not name.lower().endswith(".txt"):
        return Images(name, image_key, split)
    if image_key is not None or split is not None:
        raise ValueError(f"{name}: a text file has neither images nor parts; leave image_key and split out")
    return Texts(name)


def _state(path: str) -> str:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # missing, or no path at all: said when the item is read
        return "missing"
    return f"{found.st_size} {found.st_mtime_ns}"
