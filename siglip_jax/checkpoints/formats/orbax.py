"""Orbax directories: `config.json` beside a folder of parameters written by orbax's `StandardCheckpointer`.

Trees that others have saved are read too: those with the names of big_vision (`orbax_trees`), and parameters of this
package without that `config.json`. Every process writes and reads its own shards, and a checkpoint can be restored onto
any mesh. `config.json` names the folder of the parameters and is written last, so a reader sees either the old
checkpoint or the new one.
"""

import functools
import math
import operator
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from siglip_jax._checks import reason, shown
from siglip_jax._files import check_space, inside, naming, read_json
from siglip_jax.checkpoints.checkpoint import Checkpoint, Contents
from siglip_jax.checkpoints.formats import orbax_trees
from siglip_jax.checkpoints.formats._format import Format, Shardings
from siglip_jax.checkpoints.keymap import CLASSIFIER, architecture_of, key_table
from siglip_jax.checkpoints.table import Row, StoredTensor, check_rows, new_tensors
from siglip_jax.configs.configuration import Config, config_from_dict
from siglip_jax.params import flatten, unflatten, unstack_layers

_UNCHECKED = 64 << 20  # bytes of parameters that may come from files of any size
_MOST_EXPANSION = 20  # trained weights hardly compress
_METADATA = "_METADATA"  # file in the folder of every tree
POINTER = "orbax_params"  # key of config.json that names the folder of the parameters


def recognises(path: Path) -> bool:
    """Returns whether a path is a directory of this format, or holds a tree saved by orbax."""
    return _is_ours(path) or _tree(path) is not None


def _is_ours(path: Path) -> bool:
    return path.is_dir() and (path / "config.json").is_file() and POINTER in read_json(path / "config.json", "")


def _tree(path: Path) -> Path | None:
    """Returns the folder of a tree: the path itself, or the item in it that `CheckpointManager` and openpi call so."""
    folders = (path, path / "params", path / "default")
    return next((folder for folder in folders if (folder / _METADATA).is_file()), None)


def table(config: Config, architecture: str, layout: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of all parameters; their names are the paths, unless `layout` describes a tree of others."""
    if layout:
        return orbax_trees.table(config, architecture, layout)
    return [Row(row.path, row.path, row.shape) for row in key_table(config, architecture)]


def read_contents(path: Path) -> Contents:
    """Reads the metadata of a directory.

    Raises:
      ValueError: if the directory is damaged.
    """
    if not _is_ours(path) and (folder := _tree(path)) is not None:
        found = orbax_trees.find(path, _read_metadata(folder))
        return Contents(path, "orbax", found.config, found.architecture, found.tensors, found.layout)
    d = dict(read_json(path / "config.json", "a checkpoint directory needs it"))
    name = d.pop(POINTER)
    if not isinstance(name, str) or Path(name).name != name or not (path / name).is_dir():
        raise ValueError(f"{path / 'config.json'}: {POINTER} must be the name of a folder beside it, got {shown(name)}")
    tensors = _read_metadata(path / name)
    with naming(path / "config.json"):
        config = config_from_dict(d)
    classifies = any(key.startswith(CLASSIFIER) for key in tensors)
    return Contents(path, "orbax", config, architecture_of(config, classifies), tensors, {})


def _read_metadata(folder: Path) -> dict[str, StoredTensor]:
    """Returns the leaves of a tree by path.

    Raises:
      ValueError: if the folder is damaged.
    """
    import orbax.checkpoint as ocp

    folder = inside(folder).resolve()
    try:
        if (metadata := folder / _METADATA).is_file():
            read_json(metadata, "")  # orbax parses it however much memory that takes
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.metadata(folder).item_metadata.tree
        return {
            "/".join(names): orbax_trees.Leaf(
                folder, tuple(leaf.shape), np.dtype(leaf.dtype), lambda: np.empty(0), names
            )
            for names, leaf in _leaves(tree)
        }
    except Exception as error:  # orbax and tensorstore raise many types of errors for a damaged directory
        raise ValueError(_damaged(folder, error)) from error


def _leaves(tree: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields (names from the root, leaf) of the arrays of a tree."""
    for name, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        if isinstance(value, Mapping | list | tuple):
            yield from _leaves(value, (*at, str(name)))
        elif getattr(value, "shape", None) is not None:
            yield (*at, str(name)), value


def restore(
    what: str, contents: Contents, rows: list[Row], ignored: Iterable[str], shardings: Shardings | None
) -> dict[str, Any]:
    """Reads the parameters of some rows.

    Args:
      what: name of the checkpoint, for errors.
      contents: metadata of the directory.
      rows: rows of the parameters to read.
      ignored: names of further parameters that the directory may hold.
      shardings: function from the shapes of the parameters by path to their shardings, for jax arrays of which every
        process reads its own shards; None: numpy arrays.

    Returns:
      Nested dict of arrays.

    Raises:
      ValueError: if parameters are missing, unexpected or of the wrong shape, or the files are damaged.
    """
    import jax
    import orbax.checkpoint as ocp

    check_rows(what, rows, contents.tensors, ignored)
    ours = not contents.layout
    where = shardings({row.path: row.shape for row in rows}) if shardings and ours else {}
    leaves = {row.key: contents.tensors[row.key] for row in rows}
    folder = next(iter(leaves.values())).file
    check_expansion(folder, leaves.values())
    target: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    for key, leaf in leaves.items():
        sharding = where.get(key)  # of our own trees only, whose names are paths
        kind = ocp.ArrayRestoreArgs(sharding=sharding) if where else ocp.RestoreArgs(restore_type=np.ndarray)
        names = cast(orbax_trees.Leaf, leaf).names
        _put(target, names, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding))
        _put(arguments, names, kind)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            found = checkpointer.restore(folder, item=target, restore_args=arguments, partial_restore=True)
    except Exception as error:  # as in `read_contents`
        raise ValueError(_damaged(folder, error)) from error
    if ours:
        return found
    tensors = {key: _take(found, cast(orbax_trees.Leaf, leaf).names) for key, leaf in leaves.items()}
    return unflatten({row.path: row.param(tensors[row.key]) for row in rows})


def _put(tree: dict[str, Any], names: tuple[str, ...], leaf: Any) -> None:
    for name in names[:-1]:
        tree = tree.setdefault(name, {})
    tree[names[-1]] = leaf


def _take(tree: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return functools.reduce(operator.getitem, names, tree)


def check_expansion(folder: Path, tensors: Iterable[StoredTensor]) -> None:
    """Raises a `ValueError` if the files are so small that they were made to exhaust the memory."""
    needed = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors)
    found = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if needed > max(_UNCHECKED, _MOST_EXPANSION * found):
        raise ValueError(
            f"{folder}: the files must have at least 1/{_MOST_EXPANSION} of the {shown(needed)} bytes of the"
            f" parameters, got {found} bytes; get it again"
        )


def _damaged(folder: Path, error: Exception) -> str:
    return f"{folder}: the folder must hold parameters written by orbax, got a damaged one ({reason(error)})"


def write(directory: Path, checkpoint: Checkpoint) -> None:
    """Writes the parameters to a new folder, then `config.json`, then removes the folder of the old checkpoint.

    Args:
      directory: directory to write to, created if it does not exist.
      checkpoint: configuration and parameters to write.

    Raises:
      OSError: if the disk has no room for them.
      ValueError: if the parameters are not those of the configuration.
    """
    import orbax.checkpoint as ocp

    what = f"the tree of parameters (as {checkpoint.architecture})"
    new_tensors(what, table(checkpoint.config, checkpoint.architecture, {}), checkpoint.params)  # only checks
    directory.mkdir(parents=True, exist_ok=True)
    name = f"params.{uuid.uuid4().hex[:12]}"
    arrays = {
        path: x if hasattr(x, "sharding") else np.asarray(x)
        for path, x in flatten(unstack_layers(checkpoint.params)).items()
    }
    check_space(directory, sum(x.nbytes for x in arrays.values()))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.resolve() / name, unflatten(arrays))
    config = checkpoint.config
    config.replace(extra={**config.extra, POINTER: name}).save_pretrained(directory)
    for old in directory.glob("params.*"):
        if old.is_dir() and old.name != name:
            shutil.rmtree(old, ignore_errors=True)


FORMAT = Format(
    name="orbax",
    files="an orbax directory",
    recognises=recognises,
    read_contents=read_contents,
    table=table,
    write=write,
    restore=restore,
)
