"""WebDataset: shards of uncompressed tar, where files of one name up to the first dot make one example.

`0017.jpg`, `0017.txt` and `0017.cls` are an image, its caption and its label; `0017.json` may hold either. Differs
from the `webdataset` package in this: any example can be read at any time, by an index that is made of the headers.
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

Group = dict[str, Member]  # what is behind the first dot, in lower case, and the member
Place = tuple[int, int]  # offset and size in bytes; size −1 where there is nothing
_NOWHERE = (0, -1)


class TarSource:
    """Examples in shards. Names in a tar serve for messages only, and nothing is written to disk."""

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
        """Makes the index.

        Args:
          shards: tar files, in their order.
          path: what the user called them.
          image_key: ending of the images, such as `jpg`; by default whatever is an image.
          text_key: ending of the captions, or a key in the `.json`; by default `txt`, or a usual key.
          label_key: the same for the labels; by default `cls`.
          images_only: whether captions and labels are left alone, and need not be there.

        Raises:
          OSError: if a shard cannot be read.
          ValueError: if one is broken, or there are no images, or no captions and no labels.
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
            first, count = "; ".join(broken[:20]), f"{len(broken)} of {len(shards)} are broken"
            raise ValueError(f"{path}: expected whole tar files, {count}; fetch again or remove: {first}")
        if not index.rows:
            raise ValueError(f"{path}: expected images in the tar files, found the endings {columns.listed(endings)}")
        self._places: Int64[np.ndarray, "examples 9"] = np.array(index.rows, np.int64).reshape(-1, 9)
        in_json = self._keys_in_json() if index.json else []
        where = f"{path}: .json"
        self._text_key = None if index.texts else columns.pick(in_json, text_key, columns.TEXT, "text_key", where)
        # A label in the .json counts only where it was asked for: .json files say all sorts of things of an image.
        self._label_key = None
        if label_key is not None and not index.labels:
            self._label_key = columns.pick(in_json, label_key, (), "label_key", where)
        found = index.texts or index.labels or self._text_key is not None or self._label_key is not None
        if not found and not images_only:
            keys = f", and the keys {columns.listed(in_json)} in .json" if index.json else ""
            raise ValueError(
                f"{path}: no captions found: expected .txt, .json or .cls beside the images, found the endings "
                f"{columns.listed(sorted(endings))}{keys}; name one with text_key or label_key"
            )

    def _keys_in_json(self) -> list[str]:
        keys: dict[str, None] = {}
        for row in self._places[self._places[:, 6] >= 0][:100].tolist():
            try:
                keys |= dict.fromkeys(_object(self._read(row[0], (row[5], row[6]), self.path), self.path))
            except ValueError:
                continue  # said when the example is read
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
            raise ValueError(f"{name}: {size} bytes, more than the {MAX_BYTES} allowed")
        return self._files.read(shard, offset, size)

    def name(self, index: int) -> str:
        """Returns the name of the shard and of the image in it."""
        shard, *image = self._places[index, :3].tolist()
        return self._name(shard, image)

    def files(self) -> Iterator[tuple[str, str]]:
        """Yields name and path of every file that is read."""
        return ((os.path.basename(path), path) for path in self._files.paths)

    def _name(self, shard: int, place: Sequence[int]) -> str:
        header = self._files.read(shard, place[0] - 512, 100)
        member = header.split(b"\0")[0].decode("utf-8", "replace")
        return f"{os.path.basename(self._files.paths[shard])}:{member}"

    def _label(self, value: Any) -> int | None:
        """Returns the number of a class; None where it is neither that nor the name of a known one."""
        if isinstance(value, str) and value in self._class_numbers:
            return self._class_numbers[value]
        if isinstance(value, bool) or not str(value).isdecimal():
            return None
        number = int(value)
        return number if number < (len(self.classes) or 10_000_000) else None


class _Index:
    """Rows of nine numbers: the shard; offset and size of image, caption, JSON and label."""

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
    """Yields members that follow each other and share folder and name up to the first dot."""
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
    """Returns the image of an example: the one of a plain ending before one such as `.mask.png`."""
    found = [ending for ending in group if f".{ending}".endswith(IMAGE_SUFFIXES)]
    return group[min(found, key=lambda ending: ending.count("."))] if found else None


def _object(data: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: its .json is broken ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{name}: expected an object in its .json, found a {type(found).__name__}")
    return found


def _class_names(shards: Sequence[str]) -> tuple[str, ...]:
    """Returns the lines of `classnames.txt` beside the shards or one folder up, if it is there."""
    folder = Path(shards[0]).parent
    for path in (folder / "classnames.txt", folder.parent / "classnames.txt"):
        if path.is_file():
            return tuple(line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip())
    return ()
