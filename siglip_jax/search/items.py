"""Items to embed: images of a folder or a data set, or lines of a text file, each with a stable name."""

import functools
import hashlib
import os
from array import array
from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

IMAGES, TEXTS = "images", "texts"


@runtime_checkable
class Items(Protocol):
    """Images or texts in a fixed order, the input of `embed`; `open_items` opens the usual sources.

    An object with these members can be embedded too; no base class is needed. Two more are optional: `columns`, a tuple
    of names, with `metadata(index)`, a dict of values that JSON can hold, which a search returns; `state(index)`, a
    string that differs if the item does, so that an update embeds only what is new.

    Attributes:
      kind: "images" or "texts".
      path: absolute path of the source.
      options: further arguments that chose the items, by name; JSON must be able to hold them.

    Example:
      >>> class Colours:
      ...     kind, path, options, fingerprint = "texts", "/colours", {}, "1"
      ...     names = ["red", "lime"]
      ...     def __len__(self): return len(self.names)
      ...     def name(self, index): return f"colour:{index}"
      ...     def read(self, index): return self.names[index]
      >>> isinstance(Colours(), Items)
      True
    """

    kind: str
    path: str
    options: dict[str, str | None]

    def __len__(self) -> int:
        """Returns the number of items."""
        ...

    @property
    def fingerprint(self) -> str:
        """A string that differs if the items do."""
        ...

    def name(self, index: int) -> str:
        """Returns the name of an item, which is stable between runs.

        Args:
          index: index of the item, from 0.

        Returns:
          The name, as in "cats/one.png", "shard-000.tar:0017.jpg" or "queries.txt:12".
        """
        ...

    def read(self, index: int) -> Any:
        """Reads an item.

        Args:
          index: index of the item, from 0.

        Returns:
          A string, or an image as `siglip_jax.processing.load_image` takes it: a path, bytes, PIL image or array.

        Raises:
          OSError: if the item cannot be read.
          ValueError: if the item is not text in UTF-8, or not an image.
        """
        ...


class Images:
    """Images of a folder, tar shards, Parquet, Arrow, or a table beside images."""

    kind = IMAGES

    def __init__(
        self,
        path: str,
        image_key: str | None = None,
        split: str | None = None,
        kind: str | None = None,
        root: str | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        """Lists the images of a source.

        Args:
          path: folder, file or pattern of the images.
          image_key: column, key or ending of the images; None: one of the usual names.
          split: split to take where folders or files are named after splits; None: "train" there.
          kind: which kind of data set to open in a folder of several; None: there must be only one.
          root: folder that the images of a table must be in; None: that of the table.
          columns: names of columns that are kept as metadata.

        Raises:
          OSError: if the path does not exist.
          ValueError: if no format is recognised, or pyarrow is not installed.
        """
        from siglip_jax.data.open import open_source  # needs the extra `data`, unlike a text file

        self._source = open_source(path, image_key=image_key, split=split, kind=kind, root=root, images_only=True)
        self.path, self.options = os.path.abspath(path), {"image_key": image_key, "split": split}
        # Left out where they are not given, so that collections that were begun without them can be resumed.
        self.options |= {"kind": kind} if kind else {}
        self.options |= {"root": os.path.abspath(root)} if root else {}
        self.columns, source = tuple(columns), cast(Any, self._source)
        if columns and not hasattr(source, "column"):
            raise ValueError(
                f"{path}: columns must be those of a table, Parquet or Arrow, got other data; leave them out"
            )
        self._columns = {name: source.column(name) for name in columns}

    def __len__(self) -> int:
        return len(self._source)

    @property
    def left_out(self) -> Any:
        """The files of a folder that are not read, a `LeftOut`; None for other kinds of data sets."""
        return getattr(self._source, "left_out", None)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the names, sizes and times of the files, each of which is looked up, and of a table's contents."""
        from siglip_jax.data.sources.table import TableSource

        digest = hashlib.sha256()
        if isinstance(self._source, TableSource):
            for chunk in self._source.contents():
                digest.update(chunk)
        for name, path in self._source.files():
            digest.update(f"{name}\0{_state(path)}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    @functools.cached_property
    def _states(self) -> dict[str, str]:
        """States of the files, by name."""
        return {name: _state(path) for name, path in self._source.files()}

    def state(self, index: int) -> str:
        """Returns the name of an image with the size and time of its file or shard, or else of all files."""
        from siglip_jax.data.sources.tar import TarSource

        name = self.name(index)
        file = name.rpartition(":")[0] if isinstance(self._source, TarSource) else name
        return f"{name}\0{self._states.get(file, self.fingerprint)}"

    def metadata(self, index: int) -> dict[str, Any]:
        """Returns the values of the columns that are kept."""
        return {name: values[index] for name, values in self._columns.items()}

    def name(self, index: int) -> str:
        """See `Items`."""
        return self._source.name(index)

    def read(self, index: int) -> Any:
        """See `Items`."""
        return self._source[index].image


class Texts:
    """Lines of a text file in UTF-8; blank lines are skipped.

    Attributes:
      fingerprint: SHA-256 of the contents of the file.
    """

    kind = TEXTS
    options: dict[str, str | None] = {}

    def __init__(self, path: str) -> None:
        """Finds the lines and keeps only their offsets in memory.

        Args:
          path: path of the text file.

        Raises:
          OSError: if the file cannot be read.
          ValueError: if every line is blank.
        """
        self.path = os.path.abspath(path)
        self._file = os.path.basename(path)
        self._places = array("q")  # of each line: number, from 1; offset and length in bytes
        digest, start = hashlib.sha256(), 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                if line.strip():
                    self._places.extend((number, start, len(line)))
                start += len(line)
        self.fingerprint = digest.hexdigest()
        if not self._places:
            raise ValueError(f"{path}: the file must have a line of text, got none")

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
            raise ValueError(f"{self.name(index)}: the text must be UTF-8, got other bytes") from None


def columns_of(items: Items) -> tuple[str, ...]:
    """Returns the names of the metadata that is stored beside the embeddings.

    Args:
      items: images or texts; those with an attribute `columns` have a method `metadata(index)`.
    """
    return tuple(getattr(items, "columns", ("text",) if items.kind == TEXTS else ()))


def metadata_of(items: Any, index: int) -> dict[str, Any]:
    """Returns the metadata of an item, by the name of the column.

    Args:
      items: images or texts.
      index: index of the item, from 0.
    """
    if not hasattr(items, "columns"):
        return {"text": items.read(index)} if items.kind == TEXTS else {}
    found = items.metadata(index)
    return {name: found.get(name) for name in items.columns}


def state_of(items: Any, index: int) -> str:
    """Returns 32 hexadecimal digits that differ if the contents of an item do, so that an update finds what is known.

    Args:
      items: images or texts; a method `state(index)` returns any string of that meaning. Without one, a text is its own
        state, and an image changes with the fingerprint of all.
      index: index of the item, from 0.
    """
    if hasattr(items, "state"):
        state = items.state(index)
    else:
        state = items.read(index) if items.kind == TEXTS else f"{items.name(index)}\0{items.fingerprint}"
    return hashlib.sha256(state.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def open_items(
    path: str | os.PathLike[str],
    *,
    image_key: str | None = None,
    split: str | None = None,
    kind: str | None = None,
    root: str | os.PathLike[str] | None = None,
    columns: Sequence[str] = (),
) -> Items:
    """Opens the items at a path: the lines of a `.txt` file, or else images.

    Args:
      path: a `.txt` file with a text on each line, or images: a folder, tar shards, Parquet, Arrow, or JSON lines or
        CSV beside images.
      image_key: column, key or ending of the images; None: one of the usual names.
      split: split to take where folders or files are named after splits; None: "train" for a data set in files, and
        all images of a folder.
      kind: which kind of data set to open in a folder of several, as `siglip_jax.data.open_source` takes it; None:
        there must be only one.
      root: folder that the images of a table must be in, for absolute paths and `..`; None: that of the table.
      columns: names of columns of a table, Parquet or Arrow that are stored beside the embeddings and come with hits.

    Returns:
      The items.

    Raises:
      OSError: if the path does not exist or cannot be read.
      ValueError: if no format is recognised, an argument does not fit the source, or a package is not installed.

    Example:
      >>> import siglip_jax
      >>> items = open_items(siglip_jax.assets.EXAMPLES / "labels.txt")
      >>> len(items), items.kind, items.name(26), items.read(26)
      (64, 'texts', 'labels.txt:27', 'fog')
    """
    name = os.fspath(path)
    if not name.lower().endswith(".txt"):
        return Images(name, image_key, split, kind, None if root is None else os.fspath(root), columns)
    given = {"image_key": image_key, "split": split, "kind": kind, "root": root, "columns": columns or None}
    if wrong := [key for key, value in given.items() if value is not None]:
        raise ValueError(
            f"{name}: {wrong[0]} must be None for a text file, got {given[wrong[0]]!r}; leave image_key and"
            " split out, and kind, root and columns"
        )
    return Texts(name)


def _state(path: str) -> str:
    """Returns the size and the modification time of a file as a string."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # reported when the item is read
        return "missing"
    return f"{found.st_size} {found.st_mtime_ns}"
