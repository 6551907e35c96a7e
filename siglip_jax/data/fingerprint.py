"""Fingerprint of a source: a hash that differs if the examples do, from little more than a look at its files."""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from siglip_jax.data.example import Example, Source

LOOKED_UP = 20_000  # files whose sizes are looked up, at even distances; a look costs a millisecond on a network disk
SAMPLED = 64  # examples that are read, at even distances


def fingerprint(source: Source, times: bool = False) -> str:
    """Returns a hash of a source, which is the same for a copy of its files in another folder.

    The hash covers the number of examples, the classes, names and sizes of the files, the captions and labels of tables
    and Arrow files, the layout of tar files, and 64 examples with their images. A source with an attribute
    `fingerprint` states its own.

    Args:
      source: the examples.
      times: whether modification times of the files count too; they differ between copies.

    Returns:
      SHA-256 in hexadecimal.

    Raises:
      OSError: if a file whose contents count is unreadable.
    """
    own = getattr(source, "fingerprint", None)
    if isinstance(own, str):
        return own
    digest = hashlib.sha256(repr((len(source), source.classes)).encode("utf-8", "surrogatepass"))
    for name, path in _files(source):
        digest.update(f"{name}\0{_state(path, times)}\n".encode("utf-8", "surrogatepass"))
    for chunk in _contents(source):
        digest.update(chunk)
    for index in _spread(len(source), SAMPLED):
        for part in _example(source, index):
            digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _spread(count: int, most: int) -> Iterator[int]:
    """Yields at most `most` numbers below `count`, at even distances."""
    number = min(count, most)
    return (i * count // number for i in range(number))


def _files(source: Any) -> Iterator[tuple[str, str | None]]:
    """Yields (name, path) of the files of a source; the path is None where only the name counts."""
    files = list(source.files()) if hasattr(source, "files") else []
    looked_up = set(_spread(len(files), LOOKED_UP)) if files else set()
    return ((name, path if i in looked_up else None) for i, (name, path) in enumerate(files))


def _state(path: str | None, times: bool) -> tuple[int, ...] | None:
    """Returns the size of a file, and its modification time on request; None for a missing one."""
    try:
        status = None if path is None else os.stat(path)
    except (OSError, ValueError):  # an image that cannot be read is skipped and named later
        return None
    return None if status is None else (status.st_size, status.st_mtime_ns) if times else (status.st_size,)


def _contents(source: Any) -> Iterator[Any]:
    """Yields what a source has beside its images, as bytes."""
    return source.contents() if hasattr(source, "contents") else iter(())


def _example(source: Source, index: int) -> Iterator[Any]:
    """Yields the parts of an example as bytes; an unreadable one has none."""
    try:
        example: Example = source[index]
    except (OSError, ValueError):
        yield b"unreadable"
        return
    yield repr((example.texts, example.label)).encode("utf-8", "surrogatepass")
    if example.boxes is not None:
        boxes = example.boxes.tolist() if isinstance(example.boxes, np.ndarray) else example.boxes
        yield repr((boxes, example.box_captions)).encode("utf-8", "surrogatepass")
    yield example.image if isinstance(example.image, bytes) else np.ascontiguousarray(example.image).tobytes()
