"""Writing of checkpoints of any format."""

import os
from pathlib import Path
from typing import Any

from siglip_jax._checks import check_choice
from siglip_jax._files import output_path
from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.formats import FORMATS
from siglip_jax.checkpoints.keymap import ARCHITECTURES
from siglip_jax.checkpoints.read import read_contents


def write_checkpoint(
    path: str | os.PathLike[str],
    checkpoint: Checkpoint,
    format: str | None = None,
    *,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Writes a checkpoint; files appear under their names only when they are complete.

    Args:
      path: directory to write to, or an .npz file for "big_vision"; an existing checkpoint that holds no more than the
        new one is replaced.
      checkpoint: configuration and parameters to write.
      format: "huggingface", "big_vision", "open_clip", "timm", "orbax" or "quantized"; None: `checkpoint.format`.
      overwrite: whether to replace an existing checkpoint even if it holds more than the new one, such as the whole
        model of a tower.
      **options: options of the format. "huggingface": `max_shard_size`, the largest file in bytes. "big_vision":
        `stacked`, the towers ("text_model", "vision_model") whose layers are stacked, or True for all.

    Raises:
      FileExistsError: if the existing checkpoint holds more than the new one and `overwrite` is False.
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
    target = output_path(path, "path")
    if not overwrite:
        _check_existing(target, checkpoint.architecture)
    FORMATS[name].write(target, checkpoint, **options)


def _check_existing(path: Path, architecture: str) -> None:
    """Raises a `FileExistsError` if a checkpoint holds parts that a model class lacks, so that they would be lost."""
    if not path.exists():
        return
    try:
        held = read_contents(path, for_inference=True).architecture
    except (OSError, ValueError):  # nothing that could be read is lost
        return
    if lost := set(ARCHITECTURES[held]) - set(ARCHITECTURES[architecture]):
        parts = ", ".join(sorted(part.replace("logit_", "logit_scale") for part in lost))
        raise FileExistsError(
            f"{path}: the destination must not hold more than a {architecture}, got a {held}, whose {parts} would be"
            " lost; choose another destination, or pass overwrite=True"
        )


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
