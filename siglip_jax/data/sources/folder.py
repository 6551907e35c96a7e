"""Folders of images, by class, with captions or plain: all files in them with the ending of an image."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from siglip_jax.data.columns import NO_LABEL, class_order, label_of, listed
from siglip_jax.data.example import Example
from siglip_jax.data.sources.paths import as_text, read_file
from siglip_jax.processing.images.listing import LeftOut, is_image, is_set_aside, list_images, walk


class FolderSource:
    """Images in one folder per class; the classes are the names of the folders in the order of `class_order`.

    Attributes:
      left_out: the files of the folder that are not read.
    """

    left_out: LeftOut

    has_boxes = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Lists the files of each class, sorted by path; none is read.

        Args:
          path: folder of class folders; images may be stored at any depth in them.

        Raises:
          ValueError: if no folder has an image.
        """
        self.path = os.fspath(path)
        self._root = os.path.realpath(path)
        folders = sorted(f.name for f in Path(path).iterdir() if f.is_dir() and not is_set_aside(f.name))
        _, self.left_out = list_images(self._root, recursive=False)
        names: list[str] = []
        labels: list[int] = []
        self.classes: tuple[str, ...] = class_order(folders)
        for folder in (*self.classes, *(folder for folder in folders if folder not in self.classes)):
            found, left_out = list_images(os.path.join(self._root, folder))
            self.left_out.include(left_out, folder)
            names += [os.path.join(folder, image) for image in found]
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
        """Returns the path of an image relative to the folder; bytes that are not UTF-8 are surrogates."""
        return os.fsdecode(self._names[index].as_py())

    def files(self) -> Iterator[tuple[str, str]]:
        """Yields (name, path) of every file that is read."""
        for name in map(os.fsdecode, self._names.to_pylist()):
            yield name, os.path.join(self._root, name)

    def _read(self, index: int) -> bytes:
        name = os.fsdecode(self._names[index].as_py())
        return read_file(os.path.join(self._root, name), name, self.name(index))


class PlainFolder(FolderSource):
    """The images of a folder and of all its subfolders, sorted by path, without labels."""

    _used: tuple[str, ...] = ()  # endings of files that are read beside the images

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Lists the files; none is read.

        Args:
          path: folder of images.
        """
        self.path, self.classes = os.fspath(path), ()
        self._root = os.path.realpath(path)
        images, self.left_out = list_images(self._root, used=self._used)
        self._names = pa.array(map(os.fsencode, images), pa.large_binary())

    def __getitem__(self, index: int) -> Example:
        return Example(self._read(index), (), None, self.name(index))


class TextsFolder(PlainFolder):
    """The images of a folder and of all its subfolders, each with a caption in a .txt of the same name beside it."""

    _used = (".txt",)

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Lists the files; none is read. Warns of images without a .txt, which are left out.

        Args:
          path: folder of images and texts.
        """
        super().__init__(path)
        with_text, without = split_by_text(Path(self._root))
        self._names = pa.array(map(os.fsencode, with_text), pa.large_binary())
        if without:
            names = listed(without, 5)
            warnings.warn(f"{path}: {len(without):,} images without a .txt are left out: {names}", stacklevel=3)

    def __getitem__(self, index: int) -> Example:
        name = os.fsdecode(self._names[index].as_py())
        text = text_beside(name)
        data = read_file(os.path.join(self._root, text), text, self.name(index))
        return Example(self._read(index), (as_text(data, self.name(index), "caption"),), None, self.name(index))

    def files(self) -> Iterator[tuple[str, str]]:
        """Yields (name, path) of every file that is read."""
        for name, path in super().files():
            yield name, path
            yield text_beside(name), text_beside(path)


def text_beside(image: str) -> str:
    """Returns the path of the .txt with the caption of an image."""
    return os.path.splitext(image)[0] + ".txt"


def split_by_text(folder: Path) -> tuple[list[str], list[str]]:
    """Returns the sorted images of a folder and of the folders in it: those with a .txt beside them, and the others."""
    found: tuple[list[str], list[str]] = ([], [])
    for directory, files in walk(folder):
        there, start = set(files), os.path.relpath(directory, folder)
        for file in filter(is_image, files):
            found[text_beside(file) not in there].append(os.path.normpath(os.path.join(start, file)))
    return sorted(found[0]), sorted(found[1])
