"""Folders of images, by class or plain: all files in them with the ending of an image."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from siglip_jax.data.example import Example
from siglip_jax.data.sources.columns import NO_LABEL, class_order, label_of
from siglip_jax.data.sources.paths import read_file
from siglip_jax.processing.images.formats import is_image_name


class FolderSource:
    """Images in one folder per class; the classes are the names of the folders in the order of `class_order`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Lists the files of each class, sorted by path; none is read.

        Args:
          path: folder of class folders; images may be stored at any depth in them.

        Raises:
          ValueError: if no folder has an image.
        """
        self.path = os.fspath(path)
        self._root = os.path.realpath(path)
        folders = sorted(f.name for f in Path(path).iterdir() if f.is_dir() and not f.name.startswith("."))
        names: list[str] = []
        labels: list[int] = []
        self.classes: tuple[str, ...] = class_order(folders)
        for folder in (*self.classes, *(folder for folder in folders if folder not in self.classes)):
            found = sorted(_images(Path(self._root), folder))
            names += found
            labels += [self.classes.index(folder) if folder in self.classes else NO_LABEL] * len(found)
        if not names:
            raise ValueError(f"{path}: a folder of classes must have folders of images, got no image in {folders[:5]}")
        self._names = pa.array(map(os.fsencode, names), pa.large_binary())
        self._labels = np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Example:
        return Example(self._read(index), (), label_of(int(self._labels[index])), self.name(index))

    def name(self, index: int) -> str:
        """Returns the path of an image relative to the folder."""
        return self._names[index].as_py().decode("utf-8", "replace")

    def files(self) -> Iterator[tuple[str, str]]:
        """Yields (name, path) of every file that is read."""
        for name in map(os.fsdecode, self._names.to_pylist()):
            yield name, os.path.join(self._root, name)

    def _read(self, index: int) -> bytes:
        name = os.fsdecode(self._names[index].as_py())
        return read_file(os.path.join(self._root, name), name, self.name(index))


class PlainFolder(FolderSource):
    """The images of a folder and of all its subfolders, sorted by path, without labels."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Lists the files; none is read.

        Args:
          path: folder of images.
        """
        self.path, self.classes = os.fspath(path), ()
        self._root = os.path.realpath(path)
        self._names = pa.array(map(os.fsencode, sorted(_images(Path(self._root), "."))), pa.large_binary())

    def __getitem__(self, index: int) -> Example:
        return Example(self._read(index), (), None, self.name(index))


def _images(root: Path, folder: str) -> list[str]:
    found = []
    for directory, files in walk(root / folder):
        for file in files:
            if is_image_name(file) and not file.startswith("."):
                found.append(os.path.relpath(os.path.join(directory, file), root))
    return found


def walk(folder: str | os.PathLike[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields (path, names of files) of a folder and of all folders in it.

    Symbolic links are followed, but a folder comes only once, by its own path if that is among them.
    """
    seen: set[str] = set()
    todo = [os.fspath(folder)]
    while todo:
        for directory, folders, files in os.walk(todo.pop(0)):
            real = os.path.realpath(directory)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            yield directory, files
            links = [os.path.join(directory, name) for name in sorted(folders)]
            todo += [link for link in links if os.path.islink(link)]
