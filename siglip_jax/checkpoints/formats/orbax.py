"""Orbax directories: `config.json` and, beside it, the tree of parameters as orbax's `StandardCheckpointer` writes it.

Every process writes and reads its own part of each array, and a checkpoint is restored onto any mesh. `config.json` is
written last and names the folder of the parameters: it decides which of two checkpoints a reader sees.
"""

import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from siglip_jax._files import inside, read_json
from siglip_jax.checkpoints.checkpoint import Checkpoint, Contents
from siglip_jax.checkpoints.formats._format import Format, Shardings
from siglip_jax.checkpoints.keymap import CLASSIFIER, architecture_of, key_table
from siglip_jax.checkpoints.table import Row, StoredTensor, check_rows, new_tensors
from siglip_jax.configs.configuration import Config, config_from_dict
from siglip_jax.params import flatten, unflatten, unstack_layers

POINTER = "orbax_params"  # the key of config.json that names the folder


def recognises(path: Path) -> bool:
    """Says whether a directory is of this format."""
    return path.is_dir() and (path / "config.json").is_file() and POINTER in read_json(path / "config.json", "")


def table(config: Config, architecture: str, layout: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of this format: parameters under their own paths."""
    return [Row(row.path, row.path, row.shape) for row in key_table(config, architecture)]


def read_contents(path: Path) -> Contents:
    """Says what a directory holds; reads metadata only.

    Raises:
      ValueError: if it is damaged.
    """
    import orbax.checkpoint as ocp

    d = dict(read_json(path / "config.json", "a checkpoint directory needs it"))
    name = d.pop(POINTER)
    if not isinstance(name, str) or Path(name).name != name or not (path / name).is_dir():
        raise ValueError(f"{path / 'config.json'}: expected {POINTER} to name a folder beside it, found {name!r}")
    folder = inside(path / name).resolve()
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.metadata(folder).item_metadata.tree
    except Exception as error:  # orbax and tensorstore raise many kinds for a damaged directory
        raise ValueError(f"{folder}: expected parameters that orbax wrote, found a damaged folder ({error})") from error
    tensors = {
        key: StoredTensor(folder, tuple(leaf.shape), np.dtype(leaf.dtype), lambda: np.empty(0))
        for key, leaf in flatten(tree).items()
    }
    config = config_from_dict(d)
    classifies = any(key.startswith(CLASSIFIER) for key in tensors)
    return Contents(path, "orbax", config, architecture_of(config, classifies), tensors, {})


def restore(
    what: str, contents: Contents, rows: list[Row], ignored: Iterable[str], shardings: Shardings | None
) -> dict[str, Any]:
    """Returns the tree of parameters of some rows.

    Args:
      what: what is read, for errors.
      contents: what the directory holds.
      rows: rows of the parameters to read.
      ignored: further keys that the directory may hold.
      shardings: function from the shapes of the parameters by path to their shardings; every process then reads its
        part of each jax array. None: numpy arrays.

    Raises:
      ValueError: if parameters are missing, unexpected or of the wrong shape, or the files are damaged.
    """
    import jax
    import orbax.checkpoint as ocp

    check_rows(what, rows, contents.tensors, ignored)
    where = shardings({row.path: row.shape for row in rows}) if shardings else {}
    folder = next(iter(contents.tensors.values())).file
    target, arguments = {}, {}
    for row in rows:
        stored = contents.tensors[row.key]
        sharding = where.get(row.path)
        target[row.path] = jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=sharding)
        arguments[row.path] = (
            ocp.ArrayRestoreArgs(sharding=sharding) if shardings else ocp.RestoreArgs(restore_type=np.ndarray)
        )
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(
                folder, item=unflatten(target), restore_args=unflatten(arguments), partial_restore=True
            )
    except Exception as error:  # as above
        raise ValueError(f"{folder}: expected parameters that orbax wrote, found a damaged folder ({error})") from error


def write(directory: Path, checkpoint: Checkpoint) -> None:
    """Writes the parameters into a folder of a new name, then `config.json`, then removes what was there before.

    Raises:
      ValueError: if the parameters are not those of the configuration.
    """
    import orbax.checkpoint as ocp

    what = f"the tree of parameters (as {checkpoint.architecture})"
    new_tensors(what, table(checkpoint.config, checkpoint.architecture, {}), checkpoint.params)  # checks, makes nothing
    directory.mkdir(parents=True, exist_ok=True)
    name = f"params.{uuid.uuid4().hex[:12]}"
    arrays = {
        path: x if hasattr(x, "sharding") else np.asarray(x)
        for path, x in flatten(unstack_layers(checkpoint.params)).items()
    }
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
