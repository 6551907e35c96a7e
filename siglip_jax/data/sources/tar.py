"""WebDataset: uncompressed tar shards, in which files that share their name up to the first dot are one example.

Where only images are wanted, every image is an example by its full name.
`0017.jpg`, `0017.txt` and `0017.cls` are an image, its caption and its label; `0017.json` may hold any of these but
the image, and boxes. Unlike the `webdataset` package, this source has random access: an index is built from the headers
of the tar files.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from siglip_jax._files import read_lines
from siglip_jax.data import columns
from siglip_jax.data.example import Example
from siglip_jax.data.sources.paths import OpenFiles, as_text, name_of
from siglip_jax.data.sources.tar_index import BrokenTarError
from siglip_jax.data.sources.tar_rows import Rows, prefixes
from siglip_jax.processing.images.loading import MAX_BYTES

Place = tuple[int, int]  # offset and size in bytes; size -1 for a missing member


class TarSource:
    """Examples in tar shards; nothing is extracted to disk, and names in a tar are used for messages only."""

    def __init__(
        self,
        shards: Sequence[str],
        path: str,
        *,
        image_key: str | None = None,
        text_key: str | None = None,
        label_key: str | None = None,
        images_only: bool = False,
    ) -> None:
        """Builds the index from the headers of all shards.

        Args:
          shards: paths of the tar files, in the order of their examples.
          path: path of the data set as the user gave it, for names and messages.
          image_key: ending of the images, such as `jpg`; None: any ending of an image. With `images_only` a name ends
            with it, otherwise it is all that follows the first dot.
          text_key: ending of the captions, or their key in the `.json`; None: `txt`, or a usual key.
          label_key: ending of the labels, or their key in the `.json`; None: `cls`.
          images_only: whether every image is an example by its full name, without captions and labels.

        Raises:
          OSError: if a shard is unreadable.
          ValueError: if a shard is broken, its members repeat a name or do not stand together by example, or there are
            no images, or neither captions nor labels.
        """
        self.path = path
        self._files = OpenFiles(list(shards))
        self.classes = _class_names(shards)
        self._class_numbers = {name: i for i, name in enumerate(self.classes)}
        index = Rows(image_key, text_key, label_key, images_only)
        broken = []
        for number, shard in enumerate(shards):
            try:
                index.add(number, shard)
            except BrokenTarError as error:
                broken.append(f"{shard} ({error})")
        if broken:
            first, count = "; ".join(broken[:20]), f"{len(broken)} broken ones of {len(shards)}"
            raise ValueError(f"{path}: shards must be whole tar files, got {count}; fetch again or remove: {first}")
        endings = columns.listed(sorted(index.endings))
        self._places: Int64[np.ndarray, "examples 9"] = index.places()
        if not len(self._places):
            raise ValueError(f"{path}: tar files must hold images, got the endings {endings}")
        index.check(path)
        self._names, self._prefixes = index.names(), prefixes(shards)
        in_json = self._keys_in_json() if index.json else []
        where = f"{path}: .json"
        self._text_key = None if index.texts else columns.pick(in_json, text_key, columns.TEXT, "text_key", where)
        # A label in the .json is used only where label_key names it: .json files hold all sorts of things.
        self._label_key = None
        if label_key is not None and not index.labels:
            self._label_key = columns.pick(in_json, label_key, (), "label_key", where)
        self.has_boxes = {columns.BOXES, columns.BOX_CAPTIONS} <= {*in_json} and not images_only
        found = index.texts or index.labels or self._text_key is not None or self._label_key is not None
        if not found and not images_only:
            keys = f", and the keys {columns.listed(in_json)} in .json" if index.json else ""
            raise ValueError(
                f"{path}: images must have captions or labels in .txt, .json or .cls, got the endings "
                f"{endings}{keys}; name one with text_key or label_key"
            )

    def _keys_in_json(self) -> list[str]:
        """Returns the keys in the first 100 `.json` members."""
        keys: dict[str, None] = {}
        for row in self._places[self._places[:, 6] >= 0][:100].tolist():
            try:
                keys |= dict.fromkeys(_object(self._read(row[0], (row[5], row[6]), self.path), self.path))
            except ValueError:
                continue  # an error only when the example is read
        return list(keys)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:
        shard, *rest = self._places[index].tolist()
        image, text, notes, label = zip(rest[::2], rest[1::2], strict=True)
        name = self.name(index)
        data = self._read(shard, image, name)
        found = {}
        if notes[1] >= 0 and (self._text_key or self._label_key or self.has_boxes):
            found = _object(self._read(shard, notes, name), name)
        texts: tuple[str, ...] = ()
        if text[1] >= 0:
            texts = (self._text(shard, text, name, "caption"),)
        elif self._text_key is not None:
            texts = columns.as_texts(found.get(self._text_key), name)
        value: Any = found.get(self._label_key) if self._label_key is not None else None
        if label[1] >= 0:
            value = self._text(shard, label, name, "label")
        boxes, captions = (found.get(key) if self.has_boxes else None for key in (columns.BOXES, columns.BOX_CAPTIONS))
        return Example(data, texts, self._label(value), name, boxes, captions or ())

    def _text(self, shard: int, place: Place, name: str, what: str) -> str:
        return as_text(self._read(shard, place, name), name, what)

    def _read(self, shard: int, place: Place, name: str) -> bytes:
        offset, size = place
        if size > MAX_BYTES:
            raise ValueError(f"{name}: a member must have at most {MAX_BYTES} bytes, got {size}")
        return self._files.read(shard, offset, size)

    def name(self, index: int) -> str:
        """Returns the name of the shard and of the image in it: "shard-000.tar:0017.jpg".

        Bytes of the name that are not UTF-8 are surrogates (surrogateescape), so that names stay different.
        """
        member = name_of(self._names[index].as_py())
        return f"{self._prefixes[self._places[index, 0]]}:{member}"

    def files(self) -> Iterator[tuple[str, str]]:
        """Yields (name, path) of every file that is read."""
        return zip(self._prefixes, self._files.paths, strict=True)

    def contents(self) -> Iterator[bytes]:
        """Yields position and size of the members of every example."""
        yield self._places.tobytes()

    def _label(self, value: Any) -> int | None:
        """Returns the index of a class, or None for a value that is neither an index nor the name of a class."""
        if isinstance(value, str) and value in self._class_numbers:
            return self._class_numbers[value]
        number = columns.number_of(value)
        return number if isinstance(number, int) and 0 <= number < (len(self.classes) or 10_000_000) else None


def _object(data: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: its .json must be JSON, got other text ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{name}: its .json must be an object, got a {type(found).__name__}")
    return found


def _class_names(shards: Sequence[str]) -> tuple[str, ...]:
    """Returns the lines of `classnames.txt` in the folder of the shards or its parent, or () without that file."""
    folder = Path(shards[0]).parent
    for path in (folder / "classnames.txt", folder.parent / "classnames.txt"):
        if path.is_file():
            return read_lines(path, "names of classes")
    return ()
