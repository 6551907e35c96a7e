"""The files of big_vision, in which Google publishes SigLIP: the `two_towers` model with `img` and `txt`.

Mirrors `two_towers.load`, `vit.load`, `text_transformer.load` and `load_params`: an .npz file, or a folder with one
zarr array a parameter, as its training writes; `big_vision_names` says which trees are read. bfloat16 is stored in an
.npz as raw bytes. A text tower without `head` is read with an identity, and an exact identity is not written. Files
written here also store the configuration in the comment of the archive, which numpy and big_vision ignore.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from siglip_jax._checks import reason
from siglip_jax._files import inside, naming, read_json, written_aside
from siglip_jax.checkpoints.checkpoint import Checkpoint, Contents
from siglip_jax.checkpoints.formats._format import Format
from siglip_jax.checkpoints.formats.big_vision_names import TOWERS, find, table
from siglip_jax.checkpoints.formats.orbax import check_expansion
from siglip_jax.checkpoints.formats.text_head import is_identity, without_text_head
from siglip_jax.checkpoints.keymap import architecture_of
from siglip_jax.checkpoints.npz_file import read_npz, write_npz
from siglip_jax.checkpoints.table import StoredTensor, new_tensors
from siglip_jax.configs.config_json import describes_a_model
from siglip_jax.configs.configuration import config_from_dict

_LAST = "-LAST"  # ending of the file that names the last folder of a training run
_MOST_POINTER = 100  # bytes of that file


def recognises(path: Path) -> bool:
    """Returns whether a path is an .npz file or a folder of arrays, names the last folder, or holds exactly one."""
    return _file(path) is not None


def _file(path: Path) -> Path | None:
    """Returns the .npz file or the folder of arrays of a path."""
    if path.is_file():
        return path if path.suffix == ".npz" else _last_folder(path) if path.name.endswith(_LAST) else None
    if _is_folder(path):
        return path
    files = [file for file in path.glob("*.npz") if file.is_file()]  # OpenVision calls its orbax folders so
    if not files:
        files = [folder for file in path.glob(f"*{_LAST}") if (folder := _last_folder(file))]
    return files[0] if len(files) == 1 else None


def _is_folder(path: Path) -> bool:
    return path.is_dir() and any((entry / ".zarray").is_file() for entry in path.glob("params*"))


def _last_folder(file: Path) -> Path | None:
    """Returns the folder beside a "-LAST" file that it names, if there is one."""
    if file.stat().st_size > _MOST_POINTER:
        return None
    name = f"{file.name.removesuffix(_LAST)}-{file.read_text(encoding='utf-8', errors='replace').strip()}"
    return file.parent / name if Path(name).name == name and _is_folder(file.parent / name) else None


def read_contents(path: Path) -> Contents:
    """Reads the headers of a file or of a folder.

    Raises:
      ValueError: if the files are corrupt or of another model.
    """
    file = _file(path) or path
    tensors, comment = (_read_folder(file), {}) if file.is_dir() else read_npz(file)
    with naming(file):
        found = find(tensors, config_from_dict(comment) if describes_a_model(comment) else None)
    return Contents(file, "big_vision", found.config, architecture_of(found.config), found.tensors, found.layout)


def _read_folder(folder: Path) -> dict[str, StoredTensor]:
    """Reads the headers of a folder of zarr arrays, whose names have "~" in the place of "/"."""
    tensors = {}
    for entry in sorted(folder.iterdir()):
        if not entry.name.startswith("params~"):
            continue
        header = read_json(entry / ".zarray", "each array of big_vision needs it")
        try:
            shape = tuple(int(n) for n in header["shape"])
            name = header["dtype"]
            dtype = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name).newbyteorder("=")
            if any(n < 0 for n in shape) or not isinstance(name, str):
                raise ValueError("a shape below 0")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{entry / '.zarray'}: the file must be the header of a zarr array, got another ({reason(error)})"
            ) from error
        tensors[entry.name.replace("~", "/")] = _stored(entry, shape, dtype)
    check_expansion(folder, tensors.values())
    return tensors


def _stored(entry: Path, shape: tuple[int, ...], dtype: np.dtype) -> StoredTensor:
    def view() -> np.ndarray:
        import tensorstore as ts

        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{inside(entry).resolve()}/"}}
        try:
            array = np.asarray(ts.open(spec, read=True, open=True).result().read().result())
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{array.shape} of {array.dtype}")
        except Exception as error:  # tensorstore raises ValueError for most, and others
            raise ValueError(
                f"{entry}: the folder must be a zarr array, got a damaged one ({reason(error)})"
            ) from error
        return array

    return StoredTensor(entry.parent, shape, dtype, view)


def subtree(contents: Contents, root: str) -> Contents:
    """Returns the contents of one tower of a file, as in "file.npz:img".

    Args:
      contents: headers of the file.
      root: name of the tower in the file: "img" or "txt".

    Raises:
      ValueError: if the file has no such tower.
    """
    names = {root: name for name, root in TOWERS.items() if name in contents.layout["roots"]}
    if root not in names:
        raise ValueError(f"{contents.path}: the subtree must be :img or :txt and in the file, got :{root}")
    at = contents.layout["prefix"] + contents.layout["roots"][names[root]]
    tensors = {key: t for key, t in contents.tensors.items() if key.startswith(at)}
    config = getattr(contents.config, f"{names[root].removesuffix('_model')}_config", contents.config)
    return dataclasses.replace(contents, config=config, architecture=architecture_of(config), tensors=tensors)


def write(path: Path, checkpoint: Checkpoint, stacked: Sequence[str] | bool = False) -> None:
    """Writes an .npz file, under a temporary name until it is complete.

    Args:
      path: file to write, with the suffix .npz.
      checkpoint: configuration and parameters to write.
      stacked: towers ("text_model", "vision_model") whose layers are stacked, as with big_vision's `scan=True`; True:
        all towers; False: as in the file that the checkpoint was read from, or none.

    Raises:
      ValueError: if the format has no name for a parameter, or the parameters are not those of the configuration.
    """
    if path.suffix != ".npz":
        raise ValueError(f"{path}: the destination must be an .npz file for big_vision, got suffix {path.suffix!r}")
    layout = layout_of(checkpoint, stacked)
    rows = table(checkpoint.config, checkpoint.architecture, layout)
    params = checkpoint.params if layout["text_head"] else without_text_head(checkpoint.params)
    tensors = new_tensors(f"the tree of parameters (as {checkpoint.architecture})", rows, params)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        write_npz(aside, tensors, json.dumps(checkpoint.config.to_dict()))


def layout_of(checkpoint: Checkpoint, stacked: Sequence[str] | bool = False) -> dict[str, Any]:
    """Returns the layout that `write` chooses: that of the source file, without an identity text head."""
    layout = dict(checkpoint.layout) if checkpoint.format == "big_vision" else {}
    layout.pop("part_of", None)
    if stacked is not False:
        layout["stacked"] = [tower for tower in TOWERS if tower in (checkpoint.params if stacked is True else stacked)]
    return layout | {"text_head": not is_identity(checkpoint.params.get("text_model", {}).get("head"))}


def hub_files(names: frozenset[str]) -> list[str]:
    """Returns the .npz files among the files of a repository."""
    return sorted(name for name in names if name.endswith(".npz"))


FORMAT = Format(
    name="big_vision",
    files="one .npz of big_vision",
    recognises=recognises,
    read_contents=read_contents,
    table=table,
    write=write,
    layout=layout_of,
    write_options=("stacked",),
    subtree=subtree,
    hub_files=hub_files,
    suffix=".npz",
)
