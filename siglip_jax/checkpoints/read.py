"""Reading of checkpoints in any format."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from siglip_jax.checkpoints.checkpoint import Checkpoint, Contents
from siglip_jax.checkpoints.formats import FORMATS, Shardings
from siglip_jax.checkpoints.hub import resolve
from siglip_jax.checkpoints.keymap import narrow
from siglip_jax.checkpoints.table import Row
from siglip_jax.params import LOGITS


def read_contents(
    path: str | os.PathLike[str],
    *,
    for_inference: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Contents:
    """Returns what a checkpoint holds, from headers alone.

    Args:
      path: local directory or file, or a Hub name; for big_vision also with a sub-tree, as in "file.npz:img".
      for_inference: accept formats whose parameters are for inference only, such as quantized ones.
      revision: branch, tag or commit of a Hub repository; None: its `main`.
      local_files_only: never ask the Hub.

    Returns:
      Configuration, tensors and layout of the files.

    Raises:
      FileNotFoundError: if the path does not exist or holds no weights.
      ValueError: if the weights are of no known format, damaged, or for inference only.
    """
    name, subtree = os.fspath(path), None
    if not Path(name).exists() and (m := re.fullmatch(r"(.+):(\w+)", name)):
        name, subtree = m[1], m[2]
    found = resolve(name, revision=revision, local_files_only=local_files_only)
    for format in FORMATS.values():
        if format.recognises(found):
            if format.inference_only and not for_inference:
                raise ValueError(
                    f"{found} must be a float checkpoint, got a {format.name} one, which is for inference only; use"
                    " siglip_jax.load on it, and the checkpoint it was made from for everything else"
                )
            contents = format.read_contents(found)
            if subtree is None:
                return contents
            if format.subtree is None:
                raise ValueError(f"{found} must be a file with sub-trees to read {subtree!r} of it, got {format.name}")
            return format.subtree(contents, subtree)
    raise _unknown(found)


def _unknown(path: Path) -> Exception:
    if path.is_file():
        return ValueError(
            f"{path}: expected a .safetensors or .npz file, or a checkpoint directory, found another file"
        )
    if list(path.glob("*pytorch_model*.bin")):
        return ValueError(
            f"{path}: found only pytorch_model.bin, a pickle, which is never opened; expected model.safetensors: load"
            " it with transformers and save_pretrained it"
        )
    *kinds, last = (format.files for format in FORMATS.values() if not format.inference_only)
    return FileNotFoundError(f"{path}: expected {', '.join(kinds)} or {last} in this directory, found none")


def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Reads a checkpoint; the format is recognised from the files.

    Args:
      path: local directory or file, or a Hub name; for big_vision also with a sub-tree, as in "file.npz:img".
      architecture: model class to read as, a key of `keymap.ARCHITECTURES`: a tower is also read out of a whole model,
        and a classifier out of a model without its last layer, which is then left out of the parameters. None: the
        class that the files hold.
      revision: branch, tag or commit of a Hub repository; None: its `main`.
      local_files_only: never ask the Hub.

    Returns:
      Configuration and parameters; parameters are read-only views of memory-mapped files where the format allows.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is damaged, or tensors are missing, unexpected or of the wrong shape.

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
    """Returns one model class out of what files hold.

    Args:
      contents: what the files hold.
      architecture: model class to read as, see `read_checkpoint`.
      shardings: function from the shapes of the parameters by path to their shardings. An orbax directory is then read
        onto the devices at once; other formats give views of their files as always.

    Returns:
      The checkpoint of that class.

    Raises:
      ValueError: if the files cannot be read as that class.
    """
    c = contents
    format = FORMATS[c.format]
    part = narrow(str(c.path), c.config, c.architecture, architecture)
    rows = part.of(format.table(part.config, part.architecture, c.layout))
    ignored = {row.key for row in rows_of(c)}
    params = format.restore(f"{c.path} (as {part.architecture})", c, rows, ignored, shardings)
    return Checkpoint(part.config, params, c.format, part.architecture, c.layout)


def rows_of(contents: Contents) -> list[Row]:
    """Returns the table of the model class that files hold.

    Args:
      contents: what the files hold.

    Returns:
      One row for each parameter: its path, shape, and the tensor it comes from.
    """
    return FORMATS[contents.format].table(contents.config, contents.architecture, contents.layout)


def read_scalars(contents: Contents) -> dict[str, float]:
    """Returns the two scalars of the loss.

    Args:
      contents: what the files hold.

    Returns:
      `logit_scale`, the logarithm of the temperature, and `logit_bias`; {} for a tower alone.
    """
    rows = [row for row in rows_of(contents) if row.path in LOGITS and row.key in contents.tensors]
    if not rows:
        return {}
    every: Iterable[str] = contents.tensors
    params: dict[str, Any] = FORMATS[contents.format].restore(str(contents.path), contents, rows, every, None)
    return {path: float(np.asarray(x).reshape(-1)[0]) for path, x in params.items()}
