"""Writing of checkpoints of any format."""

import os
from typing import Any

from siglip_jax._checks import check_choice
from siglip_jax._files import output_path
from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.formats import FORMATS


def write_checkpoint(
    path: str | os.PathLike[str], checkpoint: Checkpoint, format: str | None = None, **options: Any
) -> None:
    """Writes a checkpoint; files appear under their names only when they are complete.

    Args:
      path: directory to write to, or an .npz file for "big_vision"; an existing checkpoint is replaced.
      checkpoint: configuration and parameters to write.
      format: "huggingface", "big_vision", "open_clip", "orbax" or "quantized"; None: `checkpoint.format`.
      **options: options of the format. "huggingface": `max_shard_size`, the largest file in bytes. "big_vision":
        `stacked`, the towers ("text_model", "vision_model") whose layers are stacked, or True for all.

    Raises:
      ValueError: if the format or an option is unknown, the format cannot hold the checkpoint, or the parameters do not
        match the configuration.

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
    FORMATS[name].write(output_path(path, "path"), checkpoint, **options)


def check_write_options(format: str, options: dict[str, Any]) -> None:
    """Checks that a format accepts some options.

    Args:
      format: name of the format.
      options: options by name.

    Raises:
      ValueError: if the format does not accept an option.
    """
    for option in options:
        if option not in FORMATS[format].write_options:
            takers = [f.name for f in FORMATS.values() if option in f.write_options]
            raise ValueError(
                f"{option} must be an option of format {format!r}, got an option of {', '.join(takers) or 'no format'};"
                " leave it out"
            )
