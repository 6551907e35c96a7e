"""What every format is read into and written from."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siglip_jax.checkpoints.table import StoredTensor
from siglip_jax.configs.configuration import Config


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model on disk, read.

    Attributes:
      config: of the whole model, or of the one tower that the files hold.
      params: nested dict of arrays in the types of the file, layers not stacked. Read from files they are read-only
        views of a memory map: nothing is in memory before it is looked at. After `surgery.with_dtype` they are what
        `np.asarray` makes an array of.
      format: "huggingface", "big_vision", "open_clip" or "orbax".
      architecture: the model class that the files hold, a key of `keymap.ARCHITECTURES`.
      layout: how the files used the freedom that their format leaves, such as stacked layers; the same format is
        written back in the same way.
    """

    config: Config
    params: dict[str, Any]
    format: str
    architecture: str
    layout: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What files hold, from their headers alone.

    Attributes:
      path: the directory or file.
      format, config, architecture, layout: as in `Checkpoint`.
      tensors: by their names in the files.
    """

    path: Path
    format: str
    config: Config
    architecture: str
    tensors: Mapping[str, StoredTensor]
    layout: Mapping[str, Any]
