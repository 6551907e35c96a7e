"""Writing of checkpoints in any format."""

import os
from pathlib import Path
from typing import Any

from siglip_jax._checks import check_choice
from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.formats import FORMATS


def write_checkpoint(
    path: str | os.PathLike[str], checkpoint: Checkpoint, format: str | None = None, **options: Any
) -> None:
    """Writes a checkpoint; nothing is left half-written.

    Args:
      path: directory to write to, or an .npz file for "big_vision".
      checkpoint: what is written.
      format: "huggingface", "big_vision", "open_clip" or "orbax"; None: the checkpoint's own format.
      **options: options of the format. "huggingface": `max_shard_size`, the largest file in bytes. "big_vision":
        `stacked`, the towers ("text_model", "vision_model") whose layers are stacked.

    Raises:
      ValueError: if the format or an option is unknown, or the format cannot hold the checkpoint.

    Example:
      >>> import siglip_jax, tempfile, pathlib
      >>> checkpoint = siglip_jax.read_checkpoint(siglip_jax.assets.BUNDLED_MODEL)
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     siglip_jax.write_checkpoint(f"{directory}/model.npz", checkpoint, "big_vision")
      ...     siglip_jax.read_checkpoint(f"{directory}/model.npz").format
      'big_vision'
    """
    name = format or checkpoint.format
    check_choice("format", name, FORMATS)
    check_write_options(name, options)
    FORMATS[name].write(Path(path), checkpoint, **options)


def check_write_options(format: str, options: dict[str, Any]) -> None:
    """Refuses options that a format does not take.

    Args:
      format: name of the format.
      options: options by name.

    Raises:
      ValueError: if an option is not one of the format's.
    """
    for option in options:
        if option not in FORMATS[format].write_options:
            takers = [f.name for f in FORMATS.values() if option in f.write_options]
            raise ValueError(
                f"{option} must be an option of format {format!r}, got one of {', '.join(takers) or 'no format'};"
                f" leave it out"
            )
