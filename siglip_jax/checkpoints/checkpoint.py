"""What every format is read into and written from."""

import dataclasses
from typing import Any

from siglip_jax.checkpoints.keymap import Config


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model on disk, read.

    Attributes:
      config: of the whole model, or of the one tower that the files hold.
      params: nested dict of arrays in the types of the file, layers not stacked.
      format: "huggingface".
      architecture: the model class that the files hold, a key of `keymap.ARCHITECTURES`.
    """

    config: Config
    params: dict[str, Any]
    format: str
    architecture: str
