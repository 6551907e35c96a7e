"""Data sets to test with: images as files in memory, and sources of them."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from siglip_jax.data.example import Example


def encoded(seed: int = 0, size: tuple[int, int] = (48, 40), kind: str = "JPEG") -> bytes:
    """Returns an image of large patches of colour as the bytes of a file."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(patches).resize(size).save(file, kind)
    return file.getvalue()


def saved(image: PIL.Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Returns an image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes], layout: int = tarfile.PAX_FORMAT) -> Path:
    """Writes a tar of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=layout) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


class Memory:
    """Examples in memory; those in `bad` cannot be read."""

    def __init__(self, count: int, *, bad: Sequence[int] = (), classes: int = 0, path: str = "data/memory") -> None:
        self.count, self.bad, self.path = count, frozenset(bad), path
        self.classes = tuple(map(str, range(classes)))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        name = f"memory:{index}"
        if index in self.bad:
            raise ValueError(f"{name}: broken")
        pixels = np.full((8, 8, 3), index % 256, np.uint8)
        texts = tuple(f"a photo of a cat {i}" for i in range(1 + index % 3))
        return Example(pixels, texts, index % len(self.classes) if self.classes else None, name)
