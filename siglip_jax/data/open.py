"""Opens a data set: recognises its kind from the files and returns a source of examples."""

import os
import warnings
from pathlib import Path
from typing import Any

from siglip_jax._files import user_cache
from siglip_jax.data.columns import listed
from siglip_jax.data.kinds import Recognised, recognise
from siglip_jax.data.sources import coco, parquet
from siglip_jax.data.sources.arrow import ArrowSource
from siglip_jax.data.sources.arrow_columns import Chosen
from siglip_jax.data.sources.coco import CocoSource
from siglip_jax.data.sources.folder import FolderSource, PlainFolder, TextsFolder
from siglip_jax.data.sources.table import TableSource
from siglip_jax.data.sources.tar import TarSource
from siglip_jax.processing.images.listing import is_image, walk

Opened = ArrowSource | CocoSource | FolderSource | TableSource | TarSource


def open_source(
    path: str | os.PathLike[str],
    *,
    image_key: str | None = None,
    text_key: str | None = None,
    label_key: str | None = None,
    split: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    images_only: bool = False,
    kind: str | None = None,
    root: str | os.PathLike[str] | None = None,
) -> Opened:
    """Opens a data set on disk as a source of examples with random access.

    The kind is recognised from the files: WebDataset shards (a tar, a folder of tars, `shards/*.tar`,
    `a-{000..010}.tar`), JSON lines, CSV or TSV beside images, COCO's captions `.json`, Parquet (a file or a folder) or
    the Arrow files of `datasets` (`save_to_disk` or its cache) with encoded images or paths of images, a folder of
    images with a `.txt` beside each, or a folder of class folders. A folder of several kinds is refused. An image is
    read only when its example is; Parquet, which has no random access, is copied once.

    Whatever is left out is counted and named in a `UserWarning`: images that the table of a folder does not name,
    images without a caption beside them, and members of tar files that belong to no example.

    Args:
      path: file, folder or pattern of files; a URL is refused.
      image_key: column of the images in a table, or their ending in a tar (`jpg`); None: the usual names are tried.
      text_key: column of the captions, or in a tar their ending or their key in the `.json`; None: the usual names are
        tried.
      label_key: column of the labels, or in a tar their ending or their key in the `.json`; None: the usual names are
        tried, in a tar only the ending `cls`.
      split: which split to open where folders or files are named after splits; None: `train`, or the only split.
      cache: folder for the copy of a Parquet data set that can be read at random; None: the user's cache folder.
      images_only: whether captions and labels are ignored and may be missing; a folder with images is then opened as
        plain images, including those of its subfolders, and a tar as all images in it.
      kind: "tar", "parquet", "arrow", "table", "texts" (a `.txt` beside each image) or "images" (class folders, or
        plain images): the one to open in a folder of several; None: there must be only one.
      root: folder that images named by paths must be in, and that their relative paths may begin in: for tables with
        absolute paths or with `..`; None: the folder of the file that names them.

    Returns:
      A `Source`, which also has `name(index)` and `files()`.

    Raises:
      FileNotFoundError: if no file matches `path`.
      ValueError: if no kind is recognised or several are, the files are broken, or images, captions or the split are
        not found.

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
    wanted = image_key is not None
    found = recognise(name, split=split, kind=kind, images_only=images_only, table_wanted=wanted)
    files, made_of = found.files, found.files
    if not files:
        if given := next((key for key, value in keys.items() if value is not None), None):
            raise ValueError(f"{name}: {given} must be None for folders of images, got {keys[given]!r}; leave it out")
        if found.kind == "texts":
            return TextsFolder(found.folder)
        return PlainFolder(found.folder) if images_only else FolderSource(found.folder)
    keys["images_only"] = images_only
    if found.kind == "tar":
        return TarSource(files, name, **keys)
    if found.kind == "table":
        return _table(found, name, keys, root)
    if found.kind == "parquet":
        chosen = Chosen(parquet.read_schemas(files), image_key, text_key, label_key, name, images_only)
        files = [os.fspath(parquet.as_arrow(files, chosen, Path(cache) if cache else user_cache()))]
        keys |= {"image_key": chosen.image, "text_key": chosen.text, "label_key": chosen.label}
    return ArrowSource(files, name, **keys, made_of=made_of, root=root)


def _table(found: Recognised, name: str, keys: dict[str, Any], root: str | os.PathLike[str] | None) -> Opened:
    """Opens a table, and warns of images in its folder that it does not name."""
    file = found.files[0]
    if len(found.files) > 1:
        tables = listed(map(os.path.basename, found.files))
        raise ValueError(f"{name}: a folder must hold one table, got {tables}; pass the path of one")
    if file.lower().endswith(coco.ENDING):
        if given := next((key for key in ("image_key", "text_key", "label_key") if keys[key] is not None), None):
            raise ValueError(f"{name}: {given} must be None for a .json of COCO, got {keys[given]!r}; leave it out")
        source: Opened = CocoSource(file, images_only=keys["images_only"], root=root)
    else:
        source = TableSource(file, root=root, **keys)
    if found.only_table:
        named = {os.path.normpath(path) for _, path in source.files()}
        folder = os.path.abspath(found.folder)
        images = [os.path.join(at, file) for at, files in walk(folder) for file in filter(is_image, files)]
        if left := [os.path.relpath(path, folder) for path in images if path not in named]:
            count = f"{len(left):,} of {len(images):,} images in the folder"
            missing = f"{count} are not in {os.path.basename(file)} and are left out: {listed(sorted(left), 5)}"
            warnings.warn(f"{name}: {missing}", stacklevel=3)
    return source
