"""Reading and writing of checkpoints whatever their format."""

import os
from pathlib import Path

from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.huggingface import read_huggingface, write_huggingface
from siglip_jax.hub import resolve


def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Reads a local directory or file, or a Hub name; see `read_huggingface`."""
    return read_huggingface(resolve(path, revision=revision, local_files_only=local_files_only), architecture)


def write_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint, format: str = "huggingface") -> None:
    """Writes a checkpoint; see `write_huggingface`.

    Raises:
      ValueError: if the format is unknown.
    """
    if format != "huggingface":
        raise ValueError(f"format must be 'huggingface', got {format!r}")
    write_huggingface(Path(path), checkpoint)
