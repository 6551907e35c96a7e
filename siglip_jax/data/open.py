"""Opens a data set: recognises its kind from the files and returns a source of examples."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from siglip_jax._files import read_json, user_cache
from siglip_jax.data.sources import parquet
from siglip_jax.data.sources.arrow import ArrowSource, Chosen
from siglip_jax.data.sources.columns import listed
from siglip_jax.data.sources.folder import FolderSource, PlainFolder, walk
from siglip_jax.data.sources.paths import expanded
from siglip_jax.data.sources.table import ENDINGS, TableSource
from siglip_jax.data.sources.tar import TarSource
from siglip_jax.processing.images.formats import is_image_name

_KINDS = ("tar", "parquet", "arrow", "table")
_SPLITS = ("train", "training", "validation", "valid", "val", "test", "dev", "eval")
_KNOWN = (
    "tar shards (WebDataset), .parquet, .arrow or a folder of datasets' save_to_disk, .jsonl, .csv or .tsv beside"
    " images, or a folder of class folders"
)

Opened = ArrowSource | FolderSource | TableSource | TarSource


def open_source(
    path: str | os.PathLike[str],
    *,
    image_key: str | None = None,
    text_key: str | None = None,
    label_key: str | None = None,
    split: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    images_only: bool = False,
    root: str | os.PathLike[str] | None = None,
) -> Opened:
    """Opens a data set on disk as a source of examples with random access.

    The kind is recognised from the files: WebDataset shards (a tar, a folder of tars, `shards/*.tar`,
    `a-{000..010}.tar`), JSON lines, CSV or TSV beside images, Parquet with encoded images (a file or a folder), the
    Arrow files of `datasets` (`save_to_disk` or its cache), or a folder of class folders. An image is read only when
    its example is; Parquet, which has no random access, is copied once.

    Args:
      path: file, folder or pattern of files; a URL is refused.
      image_key: column of the images in a table, or their ending in a tar (`jpg`); None: the usual names are tried.
      text_key: column of the captions, or in a tar their ending or their key in the `.json`; None: the usual names are
        tried.
      label_key: column of the labels, or in a tar their ending or their key in the `.json`; None: the usual names are
        tried, in a tar only the ending `cls`.
      split: which split to open where folders or files are named after splits; None: `train`, or the only split.
      cache: folder for the copy of a Parquet data set that can be read at random; None: the user's cache folder.
      images_only: whether captions and labels are ignored and may be missing; a folder without tar, table, Parquet or
        Arrow files is then opened as plain images, including those of its subfolders.
      root: folder that the images of a table must be in, and that their relative paths may begin in: for tables with
        absolute paths or with `..`; None: the folder of the table.

    Returns:
      A `Source`, which also has `name(index)` and `files()`.

    Raises:
      FileNotFoundError: if no file matches `path`.
      ValueError: if no kind is recognised, the files are broken, or images, captions or the split are not found.

    Example:
      >>> import siglip_jax
      >>> source = open_source(siglip_jax.assets.EXAMPLES, images_only=True)
      >>> len(source), source[0].name
      (64, 'alembic.png')
    """
    name = os.fspath(path)
    if "://" in name:
        raise ValueError(f"path must be on this disk, got the URL {name}; download the data first")
    keys: dict[str, Any] = {"image_key": image_key, "text_key": text_key, "label_key": label_key}
    folder, files = _found(name, split, images_only)
    if not files:
        if any(value is not None for value in keys.values()):
            given = next(key for key, value in keys.items() if value is not None)
            raise ValueError(f"{name}: {given} must be None for folders of images, got {keys[given]!r}; leave it out")
        if images_only:
            return PlainFolder(folder if split else name)
        return FolderSource(folder)
    keys["images_only"] = images_only
    kind, made_of = _kind(files[0]), files
    if kind == "tar":
        return TarSource(files, name, **keys)
    if kind == "table":
        if len(files) > 1:
            tables = listed(map(os.path.basename, files))
            raise ValueError(f"{name}: a folder must hold one table, got {tables}; pass the path of one")
        return TableSource(files[0], root=root, **keys)
    if kind == "parquet":
        chosen = Chosen(parquet.read_schema(files[0]), image_key, text_key, label_key, name, images_only)
        files = [os.fspath(parquet.as_arrow(files, chosen, Path(cache) if cache else user_cache()))]
        keys |= {"image_key": chosen.image, "text_key": chosen.text, "label_key": chosen.label}
    return ArrowSource(files, name, **keys, made_of=made_of)


def _kind(file: str | Path) -> str | None:
    ending = Path(file).suffix.lower()
    return "table" if ending in ENDINGS else ending[1:] if ending in (".tar", ".parquet", ".arrow") else None


def _found(name: str, split: str | None, images_only: bool) -> tuple[Path, list[str]]:
    """Returns the folder and the files of one kind in it; no files stand for class folders or plain images."""
    path = Path(name)
    if path.is_file() or not path.exists():
        files = [name] if path.is_file() else expanded(name)
        if missing := [file for file in files if not os.path.exists(file)]:
            raise FileNotFoundError(f"{missing[0]}: no such file or folder")
        wrong = [file for file in files if _kind(file) is None or _kind(file) != _kind(files[0])]
        if wrong:
            packed = "; unpack it to a plain .tar" if re.search(r"\.(tgz|tar\.\w+)$", wrong[0]) else ""
            raise ValueError(f"{wrong[0]}: a data set must be {_KNOWN}, got another kind of file{packed}")
        return path.parent, _of_split(files, split, name)
    if (path / "dataset_dict.json").is_file():
        path = path / _choice(read_json(path / "dataset_dict.json", "it names the splits").get("splits"), split, name)
        split = None
    elif folders := _folders(path):
        named = [folder for folder in folders if folder in _SPLITS or folder == split]
        if split in folders or (len(named) == len(folders) and not _contents(path)):
            path, split = path / _choice(named, split, name), None
    if (path / "state.json").is_file():
        return path, _saved(path)
    files = _contents(path) or (_contents(path / "data") if (path / "data").is_dir() else [])
    holding = [path] if images_only else [path / folder for folder in _folders(path)]
    if not files and not any(map(_has_images, holding)):
        inside = listed(sorted(os.listdir(path)), 8)
        raise ValueError(f"{name}: a data set must be {_KNOWN}, got a folder of {inside}")
    return path, _of_split(files, split, name)


def _folders(path: Path) -> list[str]:
    return sorted(f.name for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))


def _has_images(folder: Path) -> bool:
    return any(is_image_name(file) for _, files in walk(folder) for file in files)


def _contents(path: Path) -> list[str]:
    """Returns the sorted files of the first of `_KINDS` that a folder holds."""
    by_kind: dict[str | None, list[str]] = {}
    for file in sorted(path.iterdir()):
        # `map` and `filter` of `datasets` leave files behind whose names begin with cache-.
        if file.is_file() and not file.name.startswith((".", "cache-")):
            by_kind.setdefault(_kind(file), []).append(os.fspath(file))
    return next((by_kind[kind] for kind in _KINDS if kind in by_kind), [])


def _saved(path: Path) -> list[str]:
    """Returns the files that `save_to_disk` of `datasets` lists in `state.json`."""
    state = read_json(path / "state.json", "it names the files")
    entries = state.get("_data_files")
    names: list[str] = [str(entry.get("filename")) for entry in entries or [] if isinstance(entry, dict)]
    if not names or any(os.path.basename(n) != n for n in names):
        raise ValueError(f"{path / 'state.json'}: _data_files must name files in this folder, got {entries!r:.80}")
    if state.get("_indices_files"):
        raise ValueError(
            f"{path}: rows must be stored in their order, got a separate file of indices; "
            "save dataset.flatten_indices() instead"
        )
    if missing := [n for n in names if not (path / n).is_file()]:
        raise FileNotFoundError(f"{path / missing[0]}: no such file, but state.json names it")
    return [os.fspath(path / n) for n in names]


def _of_split(files: list[str], split: str | None, name: str) -> list[str]:
    """Returns the files of a split, where the names of files name splits; else all files."""
    splits = {file: found for file in files if (found := _split_in(file, split)) is not None}
    if split is None and len(set(splits.values())) < 2:
        return files
    chosen = _choice(sorted(set(splits.values())), split, name)
    return [file for file in files if splits.get(file) == chosen]


def _split_in(file: str, split: str | None) -> str | None:
    """Returns the split that the name of a file names, or None."""
    words = re.split(r"[-_.]", os.path.basename(file))
    return next((word for word in words if word in _SPLITS or word == split), None)


def _choice(splits: Sequence[str] | None, split: str | None, name: str) -> str:
    """Returns `split` if it is one of the splits; for None returns `train`, or the only split."""
    wanted = split or "train"
    splits = [found for found in splits or [] if isinstance(found, str) and os.path.basename(found) == found]
    if wanted in splits:
        return wanted
    if split is None and len(splits) == 1:
        return splits[0]
    raise ValueError(f"{name}: the data must have the split {wanted!r}, got {listed(splits)}; choose one with split")
