"""The files beside the weights of a checkpoint: copies of its tokenizer and of its image processor."""

import json
import shutil
from pathlib import Path

from siglip_jax._files import inside, read_json, write_atomically, written_aside
from siglip_jax._hub import PROCESSOR_FILES, TOKENIZER_FILES


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copies the files of a tokenizer, each of which replaces the old one only when it is complete.

    Args:
      source: directory to copy from.
      target: directory to copy to; it may be the same.

    Returns:
      Names of the files that the source has.

    Raises:
      ValueError: if a file is a link out of the source.
      OSError: if a file cannot be written.
    """
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if source.resolve() != target.resolve():
        for name in found:
            with written_aside(target / name) as aside:
                shutil.copyfile(inside(source / name), aside)
    return found


def copy_side_files(source: Path, target: Path, image_size: int | None) -> list[str]:
    """Copies the files of a tokenizer and of an image processor.

    Args:
      source: directory to copy from.
      target: directory to copy to.
      image_size: height and width in pixels that the copied image processor is set to; None: unchanged.

    Returns:
      Names of the copied files.

    Raises:
      ValueError: if a file is a link out of the source, or the settings of the image processor are not JSON.
      OSError: if a file cannot be written.
    """
    copied = copy_tokenizer(source, target)
    for name in PROCESSOR_FILES:
        if not (source / name).is_file():
            continue
        d = read_json(source / name, "it holds the image processor")
        for part in (d, d.get("image_processor")):
            if image_size is not None and isinstance(part, dict) and "height" in _size(part):
                part["size"] = {**part["size"], "height": image_size, "width": image_size}
        write_atomically(target / name, (json.dumps(d, indent=2, sort_keys=True) + "\n").encode())
        copied.append(name)
    return copied


def _size(settings: dict) -> dict:
    size = settings.get("size")
    return size if isinstance(size, dict) else {}
