"""Reading and writing of checkpoints whatever their format."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from siglip_jax.checkpoints import big_vision, huggingface, open_clip, orbax, quantized
from siglip_jax.checkpoints.checkpoint import Checkpoint, Contents
from siglip_jax.checkpoints.keymap import LOGITS, narrow
from siglip_jax.checkpoints.table import Row, Shape, check_rows, read_params
from siglip_jax.configuration import Config
from siglip_jax.hub import resolve


class Format(NamedTuple):
    """What a format has to offer; one module each."""

    recognises: Callable[[Path], bool]
    read_contents: Callable[[Path], Contents]
    table: Callable[[Config, str, Mapping[str, Any]], list[Row]]
    write: Callable[..., None]


FORMATS = {
    name: Format(module.recognises, module.read_contents, module.table, module.write)
    for name, module in {
        "open_clip": open_clip,
        "huggingface": huggingface,
        "big_vision": big_vision,
        "orbax": orbax,
    }.items()
}


def read_contents(
    path: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False
) -> Contents:
    """Says what a local directory or file, or a Hub name, holds: headers only.

    Raises:
      FileNotFoundError: if it is not there, or holds no weights.
      ValueError: if its weights are of no known format, or damaged.
    """
    name, tower = os.fspath(path), None
    if m := re.fullmatch(r"(.+\.npz):(\w+)", name):
        name, tower = m[1], m[2]
    found = resolve(name, revision=revision, local_files_only=local_files_only)
    if quantized.recognises(found):
        raise ValueError(
            f"{found}: expected a float checkpoint, found a quantized one, which is for inference only: use"
            " siglip_jax.load on it, and the checkpoint it was made from for everything else"
        )
    for format in FORMATS.values():
        if format.recognises(found):
            contents = format.read_contents(found)
            return contents if tower is None else big_vision.subtree(contents, tower)
    raise _unknown(found)


def _unknown(path: Path) -> Exception:
    kinds = "model.safetensors, an .npz of big_vision, open_clip_model.safetensors or an orbax folder"
    if path.is_file():
        return ValueError(
            f"{path}: expected a .safetensors or .npz file, or a checkpoint directory, found another file"
        )
    if list(path.glob("*pytorch_model*.bin")):
        return ValueError(
            f"{path}: found only pytorch_model.bin, a pickle, which is never opened; expected model.safetensors: load"
            " it with transformers and save_pretrained it"
        )
    return FileNotFoundError(f"{path}: expected {kinds} in this directory, found none")


def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Reads a local directory or file, or a Hub name; the format is recognised from the files.

    Args:
      path: for big_vision also with the name of a sub-tree, as in `"file.npz:img"`.
      architecture: read as this model class: a tower also loads from a whole model, a classifier also without its last
        layer, which is then left out of the parameters.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is corrupt, or tensors are missing, unexpected or of the wrong shape.
    """
    return select(read_contents(path, revision=revision, local_files_only=local_files_only), architecture)


def select(
    contents: Contents,
    architecture: str | None = None,
    shardings: Callable[[Mapping[str, Shape]], Mapping[str, Any]] | None = None,
) -> Checkpoint:
    """Returns the model class `architecture` out of what files hold; see `read_checkpoint`.

    Args:
      shardings: from the shapes of the parameters by path to where each is to lie. An orbax directory is then read onto
        the devices at once; other formats give views of their files as always.
    """
    c = contents
    table = FORMATS[c.format].table
    part = narrow(str(c.path), c.config, c.architecture, architecture)
    rows = part.of(table(part.config, part.architecture, c.layout))
    ignored = {row.key for row in rows_of(c)}
    params = _read(f"{c.path} (as {part.architecture})", c, rows, ignored, shardings)
    return Checkpoint(part.config, params, c.format, part.architecture, c.layout)


def rows_of(contents: Contents) -> list[Row]:
    """Returns the table of the model class that files hold: every parameter, and where it is."""
    return FORMATS[contents.format].table(contents.config, contents.architecture, contents.layout)


def read_scalars(contents: Contents) -> dict[str, float]:
    """Returns `logit_scale`, the logarithm of the temperature, and `logit_bias`; nothing for a tower alone."""
    rows = [row for row in rows_of(contents) if row.path.startswith(LOGITS) and row.key in contents.tensors]
    params = _read(str(contents.path), contents, rows, contents.tensors, None) if rows else {}
    return {path: float(np.asarray(x).reshape(-1)[0]) for path, x in params.items()}


def _read(what: str, contents: Contents, rows: list[Row], ignored: Iterable[str], shardings: Any) -> dict[str, Any]:
    if contents.format != "orbax":
        return read_params(what, rows, contents.tensors, ignored)
    check_rows(what, rows, contents.tensors, ignored)
    return orbax.restore(contents, rows, shardings and shardings({row.path: row.shape for row in rows}))


def write_checkpoint(
    path: str | os.PathLike[str], checkpoint: Checkpoint, format: str | None = None, **options: Any
) -> None:
    """Writes a checkpoint in one of the formats: "huggingface", "big_vision" (.npz), "open_clip" or "orbax".

    Args:
      path: a directory, or an .npz file for big_vision.
      format: the checkpoint's own if None.
      options: `max_shard_size` in bytes for "huggingface"; for "big_vision" `stacked`, the towers to stack layers of.

    Raises:
      ValueError: if the format is unknown, or cannot hold the checkpoint.
    """
    format = format or checkpoint.format
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {format!r}")
    FORMATS[format].write(Path(path), checkpoint, **options)
