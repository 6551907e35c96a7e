"""From the members of tar shards to rows: every image by itself, or examples by the rule of WebDataset.

WebDataset takes consecutive members that share their folder and their name up to the first dot as one example. What
this rule leaves out, merges or repeats is counted and named.
"""

import os
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from siglip_jax.data.sources.paths import name_bytes
from siglip_jax.data.sources.tar_index import Member, members
from siglip_jax.processing.images.formats import is_image_name

_NOWHERE = (0, -1)  # offset and size of a member that is missing
_NAMED = 5  # names in a message
_CHUNK = 2**16


class Group:
    """Consecutive members of one example.

    Attributes:
      key: folder and name up to the first dot.
      members: member of each ending after the first dot, in lower case.
      repeated: members whose ending another member has.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.members: dict[str, Member] = {}
        self.repeated: list[Member] = []


class Found:
    """Names of one kind, all of which are counted and some of which are kept."""

    def __init__(self) -> None:
        self.count = 0
        self.names: list[str] = []

    def add(self, shard: str, names: Iterable[str]) -> None:
        """Counts names of members of a shard."""
        for name in names:
            self.count += 1
            if len(self.names) < _NAMED:
                self.names.append(f"{os.path.basename(shard)}:{name}")

    def __str__(self) -> str:
        more = f" and {self.count - len(self.names)} more" if self.count > len(self.names) else ""
        return ", ".join(self.names) + more


class Rows:
    """Rows of nine integers: the shard, then offset and size of image, caption, JSON and label.

    Attributes:
      endings: endings of the members that were seen.
      texts: whether an example has a caption of its own.
      labels: whether an example has a label of its own.
      json: whether an example has a `.json`.
    """

    def __init__(self, image_key: str | None, text_key: str | None, label_key: str | None, images_only: bool) -> None:
        """Begins without rows.

        Args:
          image_key: ending of the images, such as `jpg`; None: any ending of an image.
          text_key: ending of the captions; None: `txt`.
          label_key: ending of the labels; None: `cls`.
          images_only: whether every image is a row of its own, by its full name.
        """
        self._image, self._text, self._label = (
            None if key is None else key.lower().removeprefix(".") for key in (image_key, text_key, label_key)
        )
        self._images_only = images_only
        self._places = array("q")
        self._names: list[bytes] = []
        self._chunks: list[pa.Array] = []
        self.endings: set[str] = set()
        self.texts = self.labels = self.json = False
        self._hidden, self._extra, self._alone, self._apart = Found(), Found(), Found(), Found()
        self._twice, self._same = Found(), Found()

    def add(self, number: int, shard: str) -> None:
        """Adds the rows of a shard.

        Args:
          number: index of the shard.
          shard: path of the shard.

        Raises:
          OSError: if the file is unreadable.
          BrokenTarError: if the file is truncated, compressed, or not a tar.
        """
        seen = array("q")
        if self._images_only:
            for member in members(shard):
                if self._is_image(member, shard):
                    seen.append(hash(member.name))
                    self._append(number, member.name, member)
            if again := _repeated(seen):
                names = (m.name for m in members(shard) if hash(m.name) in again and self._is_image(m, None))
                self._same.add(shard, _later(names))
            return
        for group in groups(members(shard), lambda member: self._note_hidden(shard, member)):
            seen.append(hash(group.key))
            self._add_group(number, shard, group)
        if again := _repeated(seen):
            parts: dict[str, list[bool]] = {}
            for group in groups(members(shard)):
                if hash(group.key) in again:
                    parts.setdefault(group.key, []).append(self._image_of(group)[0] is not None)
            self._same.add(shard, (key for key, images in parts.items() if all(images)))
            self._apart.add(shard, (key for key, images in parts.items() if any(images) and not all(images)))

    def _add_group(self, number: int, shard: str, group: Group) -> None:
        self.endings |= group.members.keys()
        self._twice.add(shard, (member.name for member in group.repeated))
        image, others = self._image_of(group)
        if image is None:
            self._alone.add(shard, [next(iter(group.members.values())).name])
            return
        self._extra.add(shard, (member.name for member in others))
        text, label = (group.members.get(key) for key in (self._text or "txt", self._label or "cls"))
        notes = group.members.get("json")
        self.texts |= text is not None
        self.labels |= label is not None
        self.json |= notes is not None
        self._append(number, image.name, image, text, notes, label)

    def _append(self, number: int, name: str, *found: Member | None) -> None:
        self._places.append(number)
        for member in [*found, None, None, None][:4]:
            self._places.extend(_NOWHERE if member is None else (member.offset, member.size))
        self._names.append(name_bytes(name))
        if len(self._names) == _CHUNK:
            self._flush()

    def _flush(self) -> None:
        self._chunks.append(pa.array(self._names, pa.large_binary()))
        self._names = []

    def _is_image(self, member: Member, shard: str | None) -> bool:
        """Returns whether a member is an image by its full name; with a shard, what is passed over is noted."""
        name = member.name.rpartition("/")[2].lower()
        if shard is not None:
            self.endings.add(os.path.splitext(name)[1][1:])
        if not (is_image_name(name) if self._image is None else name.endswith(f".{self._image}")):
            return False
        if shard is not None and name.startswith("."):
            self._note_hidden(shard, member)
        return not name.startswith(".")

    def _note_hidden(self, shard: str, member: Member) -> None:
        """Notes a member that could be an image: hidden files of other kinds are the system's."""
        name = member.name.rpartition("/")[2].lower()
        if "." not in name or is_image_name(name):
            self._hidden.add(shard, [member.name])

    def _image_of(self, group: Group) -> tuple[Member | None, list[Member]]:
        """Returns the image of an example and its further images; `0.jpg` is preferred over `0.mask.png`."""
        if self._image is not None:
            return group.members.get(self._image), []
        found = [ending for ending in group.members if is_image_name(f".{ending}")]
        best = min(found, key=lambda ending: ending.count("."), default=None)
        return group.members.get(best or ""), [group.members[ending] for ending in found if ending != best]

    def check(self, path: str) -> None:
        """Warns of what is left out or repeated.

        Args:
          path: path of the data set, for messages.

        Raises:
          ValueError: if members have the same name, or the members of an example do not stand together.
        """
        if self._twice.count:
            raise ValueError(
                f"{path}: names of members in an example must differ, got {self._twice.count:,} repeated ones; remove"
                f" them or rename them before the first dot: {self._twice}"
            )
        if self._apart.count:
            raise ValueError(
                f"{path}: members of an example must stand together, got {self._apart.count:,} examples in several"
                f" places; write the tar sorted by name, as with tar --sort=name: {self._apart}"
            )
        of = "" if self._image is None else f" with the ending {self._image!r}"
        for found, what in (
            (self._hidden, "members of tar files are left out, whose names are hidden or have no ending"),
            (
                self._extra,
                "images in tar files are left out, because members whose names agree up to the first dot are one"
                " example; rename them, or choose the images with image_key",
            ),
            (self._alone, f"examples in tar files are left out, because they have no image{of}"),
            (self._same, "names in tar files are repeated, and each is an example"),
        ):
            if found.count:
                warnings.warn(f"{path}: {found.count:,} {what}: {found}", stacklevel=4)

    def places(self) -> np.ndarray:
        """Returns the rows, (rows, 9) int64."""
        return np.array(self._places, np.int64).reshape(-1, 9)

    def names(self) -> pa.ChunkedArray:
        """Returns the full name of the image of each row, as bytes."""
        self._flush()
        return pa.chunked_array(self._chunks, pa.large_binary())


def groups(listed: Iterable[Member], passed: Callable[[Member], object] = lambda member: None) -> Iterator[Group]:
    """Yields groups of consecutive members that share their folder and their name up to the first dot.

    Args:
      listed: the members.
      passed: called with each member that belongs to no example: hidden, or without an ending.
    """
    group: Group | None = None
    for member in listed:
        folder, slash, file = member.name.rpartition("/")
        stem, _, ending = file.partition(".")
        if not stem or not ending:
            passed(member)
            continue
        key = f"{folder}{slash}{stem}"
        if group is None or key != group.key:
            if group is not None:
                yield group
            group = Group(key)
        if ending.lower() in group.members:
            group.repeated.append(member)
        else:
            group.members[ending.lower()] = member
    if group is not None:
        yield group


def prefixes(shards: Sequence[str]) -> list[str]:
    """Returns what the names in each shard begin with: the names of the shards, with folders where they need them."""
    names = [os.path.basename(shard) for shard in shards]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath(list(map(os.path.abspath, shards)))
    return [os.path.relpath(os.path.abspath(shard), common) for shard in shards]


def _repeated(seen: array) -> set[int]:
    """Returns the values that occur more than once."""
    values, counts = np.unique(np.array(seen, np.int64), return_counts=True)
    return set(values[counts > 1].tolist())


def _later(names: Iterable[str]) -> Iterator[str]:
    """Yields each name that was there before."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield name
        seen.add(name)
