"""Reading of checkpoints of any format."""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from siglip_jax._checks import reason, shown
from siglip_jax._files import folder_of
from siglip_jax.checkpoints.adapters import fits, injected, is_adapter, merged, read_adapter
from siglip_jax.checkpoints.checkpoint import Checkpoint, Contents
from siglip_jax.checkpoints.foreign import advice_for_path
from siglip_jax.checkpoints.formats import FORMATS, Format, Shardings, huggingface
from siglip_jax.checkpoints.hub import resolve
from siglip_jax.checkpoints.keymap import CLASSIFIER, architecture_of, narrow
from siglip_jax.checkpoints.table import Row, StoredTensor, check_rows
from siglip_jax.configs.configuration import Config
from siglip_jax.params import LOGITS


def read_contents(
    path: str | os.PathLike[str],
    *,
    for_inference: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
    variant: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    config: Config | None = None,
    key_mapping: Mapping[str, str] | None = None,
    base: str | os.PathLike[str] | None = None,
) -> Contents:
    """Reads the headers of a checkpoint's files; no parameters are read.

    Args:
      path: local directory or file, or a Hub name; a file of big_vision may be followed by one of its subtrees, as in
        "file.npz:img".
      for_inference: whether to accept formats for inference only, such as "quantized".
      revision: branch, tag or commit of a Hub repository; None: `main`.
      local_files_only: whether to use only local files and the cache, without a request to the Hub.
      subfolder: folder of the directory or repository that holds the checkpoint; None: its top.
      variant: variant of the weights, such as "fp16" for `model.fp16.safetensors`; None: `model.safetensors`.
      cache_dir: folder of the Hub's cache; None: that of `huggingface_hub`.
      token: token for the Hub, False for none; None: that of `HF_TOKEN` or of the login.
      config: configuration to use instead of that of the files, which need none then; None: that of the files.
      key_mapping: replacement of each regular expression in the names of the tensors of safetensors files: the first
        match is replaced, one expression after the other, as in the reference; None: none.
      base: checkpoint to merge a LoRA adapter of PEFT into, where `path` is one; None: the one that its configuration
        names.

    Returns:
      The configuration, tensors and layout of the files.

    Raises:
      FileNotFoundError: if the path, or the checkpoint below an adapter, does not exist or holds no weights.
      ValueError: if the weights are of an unknown format, damaged, or for inference only, or the format cannot rename
        tensors; if an adapter cannot be merged exactly, or `base` is given without one.

    Example:
      >>> import siglip_jax
      >>> contents = read_contents(siglip_jax.assets.BUNDLED_MODEL)
      >>> contents.format, contents.config.vision_config.hidden_size
      ('huggingface', 192)
    """
    name, subtree = os.fspath(path), None
    if not Path(name).exists() and (m := re.fullmatch(r"(.+):(\w+)", name)):
        name, subtree = m[1], m[2]
    hub: Any = {"local_files_only": local_files_only, "cache_dir": cache_dir, "token": token}
    found = resolve(name, revision=revision, subfolder=subfolder, variant=variant, **hub)
    if not is_adapter(found):
        if base is not None:
            raise ValueError(
                f"{found}: base must be None for a checkpoint that is no adapter, got {base}; leave it out"
            )
        return _contents(found, subtree, for_inference, config, key_mapping)
    adapter = read_adapter(found)
    below = adapter.base if base is None else os.fspath(base)
    if below is None:
        raise ValueError(f"{found}: the adapter must name the checkpoint below it, got none; pass base=")
    try:
        under = resolve(below, revision=adapter.revision if base is None else None, **hub)
        if is_adapter(under):
            raise ValueError(f"{found}: the checkpoint below an adapter must be a whole one, got {under}; pass base=")
        contents = _contents(under, subtree, False, config, key_mapping)
    except (OSError, ValueError) as error:
        if base is not None or str(found) in str(error):
            raise
        kind = next(known for known in (FileNotFoundError, OSError, ValueError) if isinstance(error, known))
        raise kind(
            f"{found}: the checkpoint below the adapter must be one that can be read, got {shown(below)}:"
            f" {reason(error)}; pass base="
        ) from error
    return merged(contents if fits(contents, adapter) else _as_transformers(contents), adapter)


def _as_transformers(contents: Contents) -> Contents:
    """Returns the contents of files of any format with the tensors that `transformers` has, made when they are read."""
    checkpoint = select(contents)
    file = next(iter(contents.tensors.values())).file
    made = huggingface.to_tensors(checkpoint).items()
    tensors = {key: StoredTensor(file, tensor.shape, tensor.dtype, tensor.make) for key, tensor in made}
    return dataclasses.replace(contents, format="huggingface", tensors=tensors, layout={})


def _contents(
    found: Path,
    subtree: str | None,
    for_inference: bool,
    config: Config | None,
    key_mapping: Mapping[str, str] | None,
) -> Contents:
    """Reads the headers of a checkpoint that is no adapter, though one may be injected into it."""
    format = check_recognised(found)
    if format.inference_only and not for_inference:
        raise ValueError(
            f"{found}: the checkpoint must be a float one, got a {format.name} one, which is for inference only; open"
            " it with siglip_jax.load, or use the checkpoint it was made from"
        )
    if key_mapping and "key_mapping" not in format.read_options:
        raise ValueError(f"{found}: key_mapping must be None for the format {format.name}, got a mapping; leave it out")
    if "config" in format.read_options:
        contents = format.read_contents(found, config=config, key_mapping=key_mapping)
    else:
        contents = format.read_contents(found)
    if inside := injected(contents):
        contents = merged(*inside)
    if config is not None and config != contents.config:
        classifies = contents.architecture.endswith("ForImageClassification")
        contents = dataclasses.replace(contents, config=config, architecture=architecture_of(config, classifies))
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
    known = path.is_file() or path.is_dir()  # not a device or a pipe, such as /dev/stdin
    if known and (said := advice_for_path(path)):
        return ValueError(f"{path}: the weights must be {said}")
    if not path.is_dir():
        return ValueError(
            f"{path}: a checkpoint must be a .safetensors file, an .npz file or a directory, got another file"
        )
    if steps := [entry for entry in path.iterdir() if entry.name.isdecimal() and entry.is_dir()]:
        newest = max(steps, key=lambda entry: int(entry.name))
        return FileNotFoundError(
            f"{path}: the directory must hold one checkpoint, got folders of steps up to {newest.name}; pass one of"
            f" them, such as {newest}"
        )
    *kinds, last = (format.files for format in FORMATS.values() if not format.inference_only)
    return FileNotFoundError(f"{path}: the directory must hold {', '.join(kinds)} or {last}, got none of them")


def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    base: str | os.PathLike[str] | None = None,
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
      base: checkpoint to merge a LoRA adapter of PEFT into, where `path` is one; None: the one that its configuration
        names.

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
    contents = read_contents(path, revision=revision, local_files_only=local_files_only, base=base)
    return select(contents, architecture)


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
    said = f" ({'; '.join(c.notes)})" if c.notes else ""
    part = narrow(f"{c.path}{said}", c.config, c.architecture, architecture)
    rows = part.of(format.table(part.config, part.architecture, c.layout))
    ignored = {row.key for row in rows_of(c)}
    params = format.restore(f"{c.path} (as {part.architecture})", c, rows, ignored, shardings)
    directory = folder_of(c.path)
    return Checkpoint(part.config, params, c.format, part.architecture, c.layout, directory)


def without_classifier(contents: Contents) -> Contents:
    """Returns the contents of a classifier's files as those of a whole model, whose last layer is then a fresh one.

    Args:
      contents: headers of the files, as returned by `read_contents`.
    """
    tensors = {key: t for key, t in contents.tensors.items() if not key.startswith(CLASSIFIER)}
    return dataclasses.replace(contents, tensors=tensors, architecture=architecture_of(contents.config))


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
