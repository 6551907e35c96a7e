"""Recognises which kind of data set the files at a path are; several kinds in a folder are refused, not chosen from."""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from siglip_jax._checks import check_choice
from siglip_jax._files import read_json
from siglip_jax.data.columns import listed
from siglip_jax.data.sources import coco, table
from siglip_jax.data.sources.folder import split_by_text
from siglip_jax.data.sources.paths import expanded
from siglip_jax.processing.images.listing import is_image, is_set_aside, walk

KINDS = ("tar", "parquet", "arrow", "table", "texts", "images")
_SPLITS = ("train", "training", "validation", "valid", "val", "test", "dev", "eval")
_MOST_JSON = 20  # files in a folder that are looked into; more of them belong to an image each
KNOWN = (
    "tar shards (WebDataset), .parquet, .arrow or a folder of datasets' save_to_disk, .jsonl beside images (a line:"
    ' {"image": "cat.jpg", "caption": "a cat"}), .csv or .tsv beside images, COCO\'s captions .json, a .txt beside each'
    " image, or a folder of class folders"
)


class Recognised(NamedTuple):
    """The data set at a path.

    Attributes:
      kind: one of `KINDS`; "texts" are images with a .txt beside each, "images" class folders or plain images.
      folder: folder of the images, for "texts" and "images".
      files: paths of the files, for the other kinds.
      only_table: whether the files are the only table in a folder that was given.
    """

    kind: str
    folder: Path
    files: list[str]
    only_table: bool = False


def recognise(
    name: str, *, split: str | None, kind: str | None, images_only: bool, table_wanted: bool = False
) -> Recognised:
    """Returns the kind and the files of the data set at a path.

    Args:
      name: file, folder or pattern of files.
      split: split to take where folders or files are named after splits; None: `train`, or the only split.
      kind: one of `KINDS`, which chooses among several in a folder; None: the folder must hold one.
      images_only: whether all images of a folder are wanted, without captions and labels.
      table_wanted: whether a table in a folder is wanted, although only images are.

    Raises:
      FileNotFoundError: if no file matches.
      ValueError: if no kind is recognised, or several are.
    """
    if kind is not None:
        check_choice("kind", kind, KINDS)
    path = Path(name)
    if path.is_file() or not path.exists():
        return _of_files(path, name, split, kind)
    top, chosen = path, split
    if (path / "dataset_dict.json").is_file():
        path = path / choice(read_json(path / "dataset_dict.json", "it names the splits").get("splits"), split, name)
        split = None
    elif folders := _folders(path):
        named = [folder for folder in folders if folder in _SPLITS or folder == split]
        if split in folders or (len(named) == len(folders) and not _contents(path)):
            if not images_only and split is None:
                _refuse_loose(path, named, name)
            path, split = path / choice(named, split, name), None
    if (path / "state.json").is_file() and kind in (None, "arrow"):
        return Recognised("arrow", path, _saved(path))
    by_kind = _contents(path)
    inside = path / "data"
    if inside.is_dir():
        for found, files in _contents(inside).items():
            by_kind.setdefault(found, []).extend(files)
    home = path if chosen or not images_only else top
    kind = _chosen_kind(by_kind, home, name, kind, images_only, table_wanted or chosen is not None)
    if kind not in by_kind:
        return Recognised(kind, home, [])
    _warn_of_nested(path, kind, by_kind[kind], name)
    return Recognised(kind, path, of_split(by_kind[kind], split, name), kind == "table" and len(by_kind[kind]) == 1)


def _of_files(path: Path, name: str, split: str | None, kind: str | None) -> Recognised:
    """Returns the data set in a file, or in the files of a pattern."""
    files = [name] if path.is_file() else expanded(name)
    if missing := [file for file in files if not os.path.exists(file)]:
        raise FileNotFoundError(f"{missing[0]}: no such file or folder")
    kinds = [_kind_of(file, lambda file: True) for file in files]
    found = kinds[0]
    wrong = [file for file, own in zip(files, kinds, strict=True) if own is None or own != found]
    if found is None or wrong:
        packed = "; unpack it to a plain .tar" if re.search(r"\.(tgz|tar\.\w+)$", wrong[0]) else ""
        raise ValueError(f"{wrong[0]}: a data set must be {KNOWN}, got another kind of file{packed}")
    if kind not in (None, found):
        raise ValueError(f"{name}: kind must be {found!r} for this file, got {kind!r}; leave kind out")
    return Recognised(found, path.parent, of_split(files, split, name))


def _chosen_kind(
    by_kind: dict[str, list[str]], home: Path, name: str, kind: str | None, images_only: bool, table_wanted: bool
) -> str:
    """Returns the kind that a folder holds.

    Args:
      by_kind: files in the folder, by kind.
      home: folder of the images.
      name: path as the user gave it, for messages.
      kind: kind that the user chose, or None.
      images_only: whether all images are wanted, without captions and labels.
      table_wanted: whether a table goes before the images, although only images are wanted.
    """
    if kind in by_kind:
        return kind
    there = {found: listed(map(os.path.basename, files), 3) for found, files in by_kind.items()}
    images = _some_images(home)
    of_table = "table" in by_kind and kind is None and (table_wanted or not images_only)
    if images and not of_table:
        there["images" if images_only else _kind_of_images(home, name, kind)] = listed(images, 3)
    if kind is not None:
        if kind not in there:
            raise ValueError(f"{name}: kind must be one of those in the folder, {listed(there)}, got {kind!r}")
        return kind
    if images and images_only and not of_table:
        there.pop("table", None)  # the folder holds whatever its table names
    if len(there) > 1:
        found = " and ".join(f"{kind} ({names})" for kind, names in there.items())
        options = " or ".join(f"--kind {kind}" for kind in there)
        advice = f"choose with kind ({options}), or pass the path of one"
        raise ValueError(f"{name}: a data set must be of one kind, got {found}; {advice}")
    if not there:
        raise ValueError(f"{name}: a data set must be {KNOWN}, got a folder of {listed(sorted(os.listdir(home)), 8)}")
    return next(iter(there))


def _kind_of_images(folder: Path, name: str, kind: str | None) -> str:
    """Returns "texts" for images with a .txt beside each, and "images" for class folders."""
    with_text, without = split_by_text(folder)
    loose = sorted(file for file in os.listdir(folder) if is_image(file))
    if kind != "images" and with_text and (kind == "texts" or loose or not without):
        return "texts"
    if with_text and kind is None:
        raise ValueError(
            f"{name}: a data set must be of one kind, got class folders, and a .txt beside {len(with_text):,} of"
            f" {len(with_text) + len(without):,} images ({listed(with_text, 3)}); choose with kind (--kind images for"
            " the classes or --kind texts)"
        )
    folders = [folder_ for folder_ in _folders(folder) if _some_images(folder / folder_)]
    if loose and not folders:
        raise ValueError(f"{name}: a data set must be {KNOWN}, got a folder of {listed(sorted(os.listdir(folder)), 8)}")
    _refuse_loose(folder, folders, name)
    return "images"


def _refuse_loose(folder: Path, folders: Sequence[str], name: str) -> None:
    """Raises a ValueError if there are images beside the folders that should hold them."""
    if loose := sorted(file for file in os.listdir(folder) if is_image(file)):
        raise ValueError(
            f"{name}: images must be in a folder of their class or split, got {len(loose):,} beside the folders"
            f" {listed(folders, 5)}: {listed(loose, 5)}; move them into one, or pass the path of a folder"
        )


def _warn_of_nested(folder: Path, kind: str, files: Sequence[str], name: str) -> None:
    """Warns of files of the same kind in deeper folders, which are not read."""
    known = {os.path.normpath(file) for file in files}
    nested = []
    for directory, names in walk(folder):
        if os.path.normpath(directory) != os.path.normpath(folder):
            paths = (
                os.path.join(directory, file)
                for file in names
                if not file.startswith(".") and _kind_of(file, None) == kind
            )
            nested += [os.path.relpath(path, folder) for path in paths if os.path.normpath(path) not in known]
    if nested:
        said = f"{len(nested):,} files of the kind {kind} in deeper folders are left out: {listed(sorted(nested), 5)}"
        warnings.warn(f"{name}: {said}; pass the path of a folder to read it", stacklevel=4)


def _some_images(folder: Path) -> list[str]:
    """Returns the first images of a folder and of the folders in it."""
    for directory, files in walk(folder):
        if found := sorted(filter(is_image, files)):
            return [os.path.relpath(os.path.join(directory, file), folder) for file in found[:4]]
    return []


def _folders(path: Path) -> list[str]:
    return sorted(f.name for f in path.iterdir() if f.is_dir() and not is_set_aside(f.name))


def _kind_of(file: str | Path, json: Callable[[str | Path], bool] | None = coco.looks_like) -> str | None:
    """Returns the kind of a file.

    Args:
      file: path of the file.
      json: whether a .json is COCO's; None: none is.
    """
    ending = Path(file).suffix.lower()
    if ending in table.ENDINGS or (ending == coco.ENDING and json is not None and json(file)):
        return "table"
    return ending[1:] if ending in (".tar", ".parquet", ".arrow") else None


def _contents(path: Path) -> dict[str, list[str]]:
    """Returns the sorted files in a folder by their kind."""
    by_kind: dict[str, list[str]] = {}
    files = sorted(path.iterdir())
    if sum(file.suffix.lower() == coco.ENDING for file in files) > _MOST_JSON:
        files = [file for file in files if file.suffix.lower() != coco.ENDING]
    for file in files:
        # `map` and `filter` of `datasets` leave files behind whose names begin with cache-.
        if not file.name.startswith((".", "cache-")) and file.is_file() and (kind := _kind_of(file)):
            by_kind.setdefault(kind, []).append(os.fspath(file))
    if "parquet" in by_kind:
        # img2dataset writes 00000.parquet, the captions and addresses of the images, beside 00000.tar or 00000/.
        others = {Path(file).stem for file in by_kind.get("tar", ())} | set(_folders(path))
        by_kind["parquet"] = [file for file in by_kind["parquet"] if Path(file).stem not in others]
    return {kind: by_kind[kind] for kind in KINDS if by_kind.get(kind)}


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


def of_split(files: list[str], split: str | None, name: str) -> list[str]:
    """Returns the files of a split, where the names of files name splits; else all files."""
    splits = {file: found for file in files if (found := _split_in(file, split)) is not None}
    if split is None and len(set(splits.values())) < 2:
        return files
    chosen = choice(sorted(set(splits.values())), split, name)
    return [file for file in files if splits.get(file) == chosen]


def _split_in(file: str, split: str | None) -> str | None:
    """Returns the split that the name of a file names, or None."""
    words = re.split(r"[-_.]", os.path.basename(file))
    return next((word for word in words if word in _SPLITS or word == split), None)


def choice(splits: Iterable[str] | None, split: str | None, name: str) -> str:
    """Returns `split` if it is one of the splits; for None returns `train`, or the only split."""
    wanted = split or "train"
    splits = [found for found in splits or [] if isinstance(found, str) and os.path.basename(found) == found]
    if wanted in splits:
        return wanted
    if split is None and len(splits) == 1:
        return splits[0]
    raise ValueError(f"{name}: the data must have the split {wanted!r}, got {listed(splits)}; choose one with split")
