"""The caches that this library and those below it keep on this disk, and their sizes."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from siglip_jax._files import user_cache


def caches() -> list[dict[str, Any]]:
    """Returns `name`, `path`, `files` and `bytes` of each cache; a path of None is one that is not in use."""
    folders = {"Hub": _hub(), "siglip_jax": user_cache(), "compiled programs": compiled_folder()}
    return [
        {
            "name": name,
            "path": folder and os.fspath(folder),
            **dict(zip(("files", "bytes"), _size(folder), strict=True)),
        }
        for name, folder in folders.items()
    ]


def compiled_folder() -> Path | None:
    """Returns the folder of jax's compilation cache; None if this process has none."""
    jax = sys.modules.get("jax")
    folder = jax and getattr(jax.config, "jax_compilation_cache_dir", None)
    return Path(folder) if folder else None


def _hub() -> Path | None:
    try:
        return Path(importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE)
    except ImportError:
        return None


def _size(folder: Path | None) -> tuple[int, int]:
    """Returns the number of files below a folder and their bytes; links are not followed."""
    sizes = list(_sizes(folder)) if folder else []
    return len(sizes), sum(sizes)


def _sizes(folder: Path) -> Iterator[int]:
    for path, _, names in os.walk(folder):  # a folder that cannot be read has no files
        for name in names:
            try:
                found = os.lstat(os.path.join(path, name))
            except OSError:  # removed meanwhile
                continue
            if not os.path.islink(os.path.join(path, name)):
                yield found.st_size
