"""The classes that every format is read into and written from."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siglip_jax.checkpoints.table import StoredTensor
from siglip_jax.configs.configuration import Config


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The configuration and parameters of a checkpoint.

    Attributes:
      config: configuration of the whole model, or of the tower that the files hold.
      params: nested dict of arrays in the dtypes of the file, layers not stacked. Arrays read from files are read-only
        views of a memory map: they are loaded into memory on first access. Leaves of a converted checkpoint may be
        objects that only `np.asarray` turns into an array.
      format: format of the files: "huggingface", "big_vision", "open_clip", "timm", "orbax" or "quantized".
      architecture: model class of the parameters, such as "SiglipModel"; a key of `keymap.ARCHITECTURES`.
      layout: choices that the format leaves open, such as stacked layers, by name; writing the same format again
        repeats them.
      directory: directory of the files it was read from, which may hold its tokenizer; None: not read from files.

    Example:
      >>> import siglip_jax
      >>> checkpoint = siglip_jax.read_checkpoint(siglip_jax.assets.BUNDLED_MODEL)
      >>> checkpoint.architecture, sorted(checkpoint.params)
      ('SiglipModel', ['logit_bias', 'logit_scale', 'text_model', 'vision_model'])
    """

    config: Config
    params: dict[str, Any]
    format: str
    architecture: str
    layout: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    directory: Path | None = None


@dataclasses.dataclass(frozen=True)
class Contents:
    """The contents of a checkpoint's files according to their headers; no parameters are read.

    Attributes:
      path: local directory or file.
      format: format of the files: "huggingface", "big_vision", "open_clip", "timm", "orbax" or "quantized".
      config: configuration of the whole model, or of the tower that the files hold.
      architecture: model class that the files hold, such as "SiglipModel"; a key of `keymap.ARCHITECTURES`.
      tensors: shape, dtype and view of each tensor, by its name in the files.
      layout: choices that the format leaves open, such as stacked layers, by name.
      notes: sentences about what reading changes, such as a prefix that is left out of the names of tensors.

    Example:
      >>> import siglip_jax
      >>> contents = siglip_jax.checkpoints.read_contents(siglip_jax.assets.BUNDLED_MODEL)
      >>> contents.tensors["logit_scale"].shape
      (1,)
    """

    path: Path
    format: str
    config: Config
    architecture: str
    tensors: Mapping[str, StoredTensor]
    layout: Mapping[str, Any]
    notes: tuple[str, ...] = ()
