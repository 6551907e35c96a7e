"""COCO's captions: one JSON file that lists images and, apart from them, the captions of each."""

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from siglip_jax.data.columns import listed, whole
from siglip_jax.data.example import Example
from siglip_jax.data.sources.paths import name_bytes, name_of, path_inside, read_file

ENDING = ".json"
_LOOK = 2**16  # bytes that are searched for the keys of COCO
_TRIED = 10  # images that are looked for when the file is opened


class CocoSource:
    """Images of a COCO file with all their captions; the images are in the folder of the file, or in another."""

    classes: tuple[str, ...] = ()
    has_boxes = False

    def __init__(
        self, path: str | os.PathLike[str], *, images_only: bool = False, root: str | os.PathLike[str] | None = None
    ) -> None:
        """Reads the file, but no image. Warns of images without a caption, which are left out.

        Args:
          path: path of the file, such as `captions_train2017.json`.
          images_only: whether captions are ignored and may be missing.
          root: folder that all images must be in; None: that of the file.

        Raises:
          FileNotFoundError: if the file, or every one of the first images, does not exist.
          ValueError: if the file does not hold images and captions as COCO does.
        """
        self.path = os.fspath(path)
        self._file, self._folder = os.path.basename(self.path), os.path.abspath(Path(path).parent)
        self._root = self._folder if root is None else os.path.abspath(root)
        names, texts = _read(Path(path))
        if not images_only:
            bare = [names[image] for image in names if not texts.get(image)]
            if len(bare) == len(names):
                raise ValueError(f"{path}: annotations must have captions, got none; pass COCO's captions_*.json")
            if bare:
                left = f"{len(bare):,} images without a caption are left out: {listed(bare, 5)}"
                warnings.warn(f"{path}: {left}", stacklevel=3)
            names = {image: name for image, name in names.items() if texts.get(image)}
        self._images = pa.array(map(name_bytes, names.values()), pa.large_binary())
        captions = [[] if images_only else texts[image] for image in names]
        self._texts = pa.array(captions, pa.large_list(pa.large_string()))
        tried = [name for _, name in zip(range(_TRIED), names.values(), strict=False)]
        if not any(os.path.exists(path_inside(name, self._folder, self._root, self._file)) for name in tried):
            raise FileNotFoundError(
                f"{path}: the images must be in {self._root}, got no {tried[0]} there; name their folder with root"
                " (--root DIR)"
            )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        name, where = name_of(self._images[index].as_py()), self.name(index)
        data = read_file(path_inside(name, self._folder, self._root, where), name, where)
        return Example(data, tuple(self._texts[index].as_py()), None, where)

    def name(self, index: int) -> str:
        """Returns the name of the file and of an image in it: "captions_train2017.json:000000391895.jpg"."""
        return f"{self._file}:{name_of(self._images[index].as_py())}"

    def files(self) -> Iterator[tuple[str, str]]:
        """Yields (name, path) of every file that is read: the JSON file and the images that it names."""
        yield self._file, self.path
        for name in map(name_of, self._images.to_pylist()):
            yield name, path_inside(name, self._folder, self._root, self._file)


def looks_like(path: str | os.PathLike[str]) -> bool:
    """Returns whether a .json file begins like COCO's."""
    with open(path, "rb") as file:
        start = file.read(_LOOK)
    return b'"images"' in start or b'"annotations"' in start


def _read(path: Path) -> tuple[dict[Any, str], dict[Any, list[str]]]:
    """Returns the path of each image, and the captions of each image, by its id."""
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict) or not all(isinstance(found.get(k), list) for k in ("images", "annotations")):
            raise ValueError("without the lists images and annotations")
        names = {image["id"]: image["file_name"] for image in found["images"]}
        texts: dict[Any, list[str]] = {}
        for note in found["annotations"]:
            if isinstance(text := note.get("caption"), str):
                texts.setdefault(note["image_id"], []).append(whole(text).strip())
        if not names or not all(isinstance(name, str) and name for name in names.values()):
            raise ValueError("without the file_name of each image")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        said = f"without the field {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f'{path}: the file must hold {{"images": [...], "annotations": [...]}} as COCO does, got another ({said})'
        ) from None
    return names, texts
