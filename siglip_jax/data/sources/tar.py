"""WebDataset: uncompressed tar shards, in which files that share their name up to the first dot are one example.

`0017.jpg`, `0017.txt` and `0017.cls` are an image, its caption and its label; `0017.json` may hold caption or label.
Unlike the `webdataset` package, this source has random access: an index is built from the headers of the tar files.
"""

import json
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from siglip_jax.data.example import Example
from siglip_jax.data.sources import columns
from siglip_jax.data.sources.paths import OpenFiles
from siglip_jax.data.sources.tar_index import BrokenTarError, Member, members
from siglip_jax.processing.images.loading import IMAGE_SUFFIXES, MAX_BYTES

Group = dict[str, Member]  # ending after the first dot, in lower case, to member
Place = tuple[int, int]  # offset and size in bytes; size -1 for a missing member
_NOWHERE = (0, -1)


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
          image_key: ending of the images, such as `jpg`; None: any ending of an image.
          text_key: ending of the captions, or their key in the `.json`; None: `txt`, or a usual key.
          label_key: ending of the labels, or their key in the `.json`; None: `cls`.
          images_only: whether captions and labels are ignored and may be missing.

        Raises:
          OSError: if a shard is unreadable.
          ValueError: if a shard is broken, or there are no images, or neither captions nor labels.
        """
        self.path = path
        self._files = OpenFiles(list(shards))
        self.classes = _class_names(shards)
        self._class_numbers = {name: i for i, name in enumerate(self.classes)}
        index, endings = _Index(image_key, text_key, label_key, images_only), set()
        broken = []
        for number, shard in enumerate(shards):
            try:
                for group in groups(members(shard)):
                    endings |= group.keys()
                    index.add(number, group)
            except BrokenTarError as error:
                broken.append(f"{shard} ({error})")
        if broken:
            first, count = "; ".join(broken[:20]), f"{len(broken)} broken ones of {len(shards)}"
            raise ValueError(f"{path}: shards must be whole tar files, got {count}; fetch again or remove: {first}")
        if not index.rows:
            raise ValueError(f"{path}: tar files must hold images, got the endings {columns.listed(endings)}")
        self._places: Int64[np.ndarray, "examples 9"] = np.array(index.rows, np.int64).reshape(-1, 9)
        in_json = self._keys_in_json() if index.json else []
        where = f"{path}: .json"
        self._text_key = None if index.texts else columns.pick(in_json, text_key, columns.TEXT, "text_key", where)
        # A label in the .json is used only where label_key names it: .json files hold all sorts of things.
        self._label_key = None
        if label_key is not None and not index.labels:
            self._label_key = columns.pick(in_json, label_key, (), "label_key", where)
        found = index.texts or index.labels or self._text_key is not None or self._label_key is not None
        if not found and not images_only:
            keys = f", and the keys {columns.listed(in_json)} in .json" if index.json else ""
            raise ValueError(
                f"{path}: images must have captions or labels in .txt, .json or .cls, got the endings "
                f"{columns.listed(sorted(endings))}{keys}; name one with text_key or label_key"
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
        name = self._name(shard, image)
        data = self._read(shard, image, name)
        found = {}
        if notes[1] >= 0 and (self._text_key or self._label_key):
            found = _object(self._read(shard, notes, name), name)
        texts: tuple[str, ...] = ()
        if text[1] >= 0:
            texts = (self._read(shard, text, name).decode("utf-8", "replace").removeprefix("\ufeff").strip(),)
        elif self._text_key is not None:
            texts = columns.as_texts(found.get(self._text_key), name)
        value: Any = found.get(self._label_key) if self._label_key is not None else None
        if label[1] >= 0:
            value = self._read(shard, label, name).decode("utf-8", "replace").strip()
        return Example(data, texts, self._label(value), name)

    def _read(self, shard: int, place: Place, name: str) -> bytes:
        offset, size = place
        if size > MAX_BYTES:
            raise ValueError(f"{name}: a member must have at most {MAX_BYTES} bytes, got {size}")
        return self._files.read(shard, offset, size)

    def name(self, index: int) -> str:
        """Returns the name of the shard and of the image in it: "shard-000.tar:0017.jpg"."""
        shard, *image = self._places[index, :3].tolist()
        return self._name(shard, image)

    def files(self) -> Iterator[tuple[str, str]]:
        """Yields (name, path) of every file that is read."""
        return ((os.path.basename(path), path) for path in self._files.paths)

    def _name(self, shard: int, place: Sequence[int]) -> str:
        header = self._files.read(shard, place[0] - 512, 100)
        member = header.split(b"\0")[0].decode("utf-8", "replace")
        return f"{os.path.basename(self._files.paths[shard])}:{member}"

    def _label(self, value: Any) -> int | None:
        """Returns the index of a class, or None for a value that is neither an index nor the name of a class."""
        if isinstance(value, str) and value in self._class_numbers:
            return self._class_numbers[value]
        if isinstance(value, bool) or not str(value).isdecimal():
            return None
        number = int(value)
        return number if number < (len(self.classes) or 10_000_000) else None


class _Index:
    """Rows of nine integers: the shard, then offset and size of image, caption, JSON and label."""

    def __init__(self, image_key: str | None, text_key: str | None, label_key: str | None, images_only: bool) -> None:
        self._images_only = images_only
        self.rows = array("q")
        self._keys = [
            None if key is None else key.lower().removeprefix(".") for key in (image_key, text_key, label_key)
        ]
        self.texts = self.labels = self.json = False

    def add(self, shard: int, group: Group) -> None:
        image_key, text_key, label_key = self._keys
        image = group.get(image_key) if image_key else _image(group)
        if image is None:
            return
        others = {} if self._images_only else group
        text, label, notes = others.get(text_key or "txt"), others.get(label_key or "cls"), others.get("json")
        self.texts |= text is not None
        self.labels |= label is not None
        self.json |= notes is not None
        self.rows.append(shard)
        for member in (image, text, notes, label):
            self.rows.extend(_NOWHERE if member is None else member[1:])


def groups(listed: Iterator[Member]) -> Iterator[Group]:
    """Yields groups of consecutive members that share their folder and their name up to the first dot."""
    group: Group = {}
    last = None
    for member in listed:
        folder, _, file = member.name.rpartition("/")
        stem, _, ending = file.partition(".")
        if not stem or not ending:
            continue
        if (folder, stem) != last and group:
            yield group
            group = {}
        last = (folder, stem)
        group.setdefault(ending.lower(), member)
    if group:
        yield group


def _image(group: Group) -> Member | None:
    """Returns the image of an example; a plain ending is preferred over one such as `.mask.png`."""
    found = [ending for ending in group if f".{ending}".endswith(IMAGE_SUFFIXES)]
    return group[min(found, key=lambda ending: ending.count("."))] if found else None


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
            return tuple(line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip())
    return ()
