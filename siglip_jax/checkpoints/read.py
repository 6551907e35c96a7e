"""Reading of checkpoints of any format."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from siglip_jax.checkpoints.checkpoint import Checkpoint, Contents
from siglip_jax.checkpoints.formats import FORMATS, Format, Shardings
from siglip_jax.checkpoints.hub import advice_for_pickles, resolve
from siglip_jax.checkpoints.keymap import narrow
from siglip_jax.checkpoints.table import Row, check_rows
from siglip_jax.params import LOGITS


def read_contents(
    path: str | os.PathLike[str],
    *,
    for_inference: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Contents:
    """Reads the headers of a checkpoint's files; no parameters are read.

    Args:
      path: local directory or file, or a Hub name; a file of big_vision may be followed by one of its subtrees, as in
        "file.npz:img".
      for_inference: whether to accept formats for inference only, such as "quantized".
      revision: branch, tag or commit of a Hub repository; None: `main`.
      local_files_only: whether to use only local files and the cache, without a request to the Hub.

    Returns:
      The configuration, tensors and layout of the files.

    Raises:
      FileNotFoundError: if the path does not exist or holds no weights.
      ValueError: if the weights are of an unknown format, damaged, or for inference only.

    Example:
      >>> import siglip_jax
      >>> contents = read_contents(siglip_jax.assets.BUNDLED_MODEL)
      >>> contents.format, contents.config.vision_config.hidden_size
      ('huggingface', 192)
    """
    name, subtree = os.fspath(path), None
    if not Path(name).exists() and (m := re.fullmatch(r"(.+):(\w+)", name)):
        name, subtree = m[1], m[2]
    found = resolve(name, revision=revision, local_files_only=local_files_only)
    format = check_recognised(found)
    if format.inference_only and not for_inference:
        raise ValueError(
            f"{found}: the checkpoint must be a float one, got a {format.name} one, which is for inference only; open"
            " it with siglip_jax.load, or use the checkpoint it was made from"
        )
    contents = format.read_contents(found)
    if subtree is None:
        return contents
    if format.subtree is None:
        raise ValueError(
            f"{found}: the file must be of a format with subtrees to read {subtree!r}, got {format.name}; leave out"
            f" :{subtree}"
        )
    return format.subtree(contents, subtree)


def check_recognised(path: Path) -> Format:
    """Returns the format of a local directory or file.

    Args:
      path: the directory or file.

    Raises:
      FileNotFoundError: if the directory holds no weights.
      ValueError: if the weights are of an unknown format, or pickled.
    """
    for format in FORMATS.values():
        if format.recognises(path):
            return format
    raise _unknown(path)


def _unknown(path: Path) -> Exception:
    if path.is_file():
        said = advice_for_pickles([path.name])
        return ValueError(
            f"{path}: the weights must be {said}"
            if said
            else f"{path}: a checkpoint must be a .safetensors file, an .npz file or a directory, got another file"
        )
    if said := advice_for_pickles(entry.name for entry in path.iterdir() if entry.is_file()):
        return ValueError(f"{path}: the weights must be {said}")
    *kinds, last = (format.files for format in FORMATS.values() if not format.inference_only)
    return FileNotFoundError(f"{path}: the directory must hold {', '.join(kinds)} or {last}, got none of them")


def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Reads a checkpoint; the format is recognised from the files.

    Args:
      path: local directory or file, or a Hub name; a file of big_vision may be followed by one of its subtrees, as in
        "file.npz:img".
      architecture: model class to read, a key of `keymap.ARCHITECTURES`; None: the class that the files hold. A tower
        can be read from a whole model. "SiglipForImageClassification" can be read from a model without a classifier,
        which the parameters then lack.
      revision: branch, tag or commit of a Hub repository; None: `main`.
      local_files_only: whether to use only local files and the cache, without a request to the Hub.

    Returns:
      The configuration and the parameters; arrays are read-only views of memory-mapped files where the format allows.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is damaged, or tensors are missing, unexpected or of the wrong shape or dtype.

    Example:
      >>> import siglip_jax
      >>> checkpoint = siglip_jax.read_checkpoint(siglip_jax.assets.BUNDLED_MODEL)
      >>> checkpoint.format, checkpoint.architecture
      ('huggingface', 'SiglipModel')
    """
    return select(read_contents(path, revision=revision, local_files_only=local_files_only), architecture)


def select(
    contents: Contents,
    architecture: str | None = None,
    shardings: Shardings | None = None,
) -> Checkpoint:
    """Reads the parameters of one model class from files whose headers have been read.

    Args:
      contents: headers of the files, as returned by `read_contents`.
      architecture: model class to read, a key of `keymap.ARCHITECTURES`; None: the class that the files hold.
      shardings: function from the shapes of the parameters by path to their shardings; None: host arrays. With it an
        orbax directory is restored onto the devices directly; the other formats return views of their files.

    Returns:
      The configuration and parameters of that class.

    Raises:
      ValueError: if the files do not hold that class.
    """
    c = contents
    format = FORMATS[c.format]
    part = narrow(str(c.path), c.config, c.architecture, architecture)
    rows = part.of(format.table(part.config, part.architecture, c.layout))
    ignored = {row.key for row in rows_of(c)}
    params = format.restore(f"{c.path} (as {part.architecture})", c, rows, ignored, shardings)
    directory = c.path if c.path.is_dir() else c.path.parent
    return Checkpoint(part.config, params, c.format, part.architecture, c.layout, directory)


def rows_of(contents: Contents) -> list[Row]:
    """Returns the table of the parameters of some files.

    Args:
      contents: headers of the files, as returned by `read_contents`.

    Returns:
      One row per parameter, with its path, its shape and the tensor that holds it.
    """
    return FORMATS[contents.format].table(contents.config, contents.architecture, contents.layout)


def check_names(contents: Contents) -> None:
    """Compares the names and shapes of the tensors of some files with the configuration, as reading them does.

    Args:
      contents: headers of the files, as returned by `read_contents`.

    Raises:
      ValueError: if tensors are missing, unexpected or of the wrong shape.
    """
    if not FORMATS[contents.format].inference_only:  # its tensors are compared when its headers are read
        check_rows(str(contents.path), rows_of(contents), contents.tensors, ())


def read_scalars(contents: Contents) -> dict[str, float]:
    """Reads the two scalars of the loss.

    Args:
      contents: headers of the files, as returned by `read_contents`.

    Returns:
      `logit_scale`, the logarithm of the temperature, and `logit_bias`; {} for the checkpoint of one tower.
    """
    rows = [row for row in rows_of(contents) if row.path in LOGITS and row.key in contents.tensors]
    if not rows:
        return {}
    every: Iterable[str] = contents.tensors
    params: dict[str, Any] = FORMATS[contents.format].restore(str(contents.path), contents, rows, every, None)
    return {path: float(np.asarray(x).reshape(-1)[0]) for path, x in params.items()}
