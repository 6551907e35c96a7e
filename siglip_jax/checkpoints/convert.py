"""From one format to another, with what people change on the way; the result is read back and compared.

`siglip-jax convert` and the scripts under `convert/` are the command lines of these functions.
"""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.load import FORMATS, read_checkpoint, read_contents, select, write_checkpoint
from siglip_jax.checkpoints.mapped import release
from siglip_jax.checkpoints.surgery import (
    Changed,
    with_dtype,
    with_labels,
    with_patch_size,
    with_resolution,
    with_text_length,
)
from siglip_jax.checkpoints.table import LazyArray, flatten, unflatten
from siglip_jax.files import inside, read_json, write_atomically

TOWERS = {"text": "TextModel", "image": "VisionModel"}
TOKENIZER_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclasses.dataclass(frozen=True)
class Changes:
    """What is to be changed on the way; None leaves it as it is.

    Attributes:
      tower: "text" or "image": that tower alone.
      patch_size, resolution: pixels of both sides, of the patches and of the images.
      rule: how the position table is resized, one of `surgery.RULES`.
      text_length: tokens.
      labels: of a fresh classifier.
      dtype: "float32", "bfloat16" or "float16".
      stacked: layers stacked in an .npz.
    """

    tower: str | None = None
    patch_size: int | None = None
    resolution: int | None = None
    rule: str = "bicubic"
    text_length: int | None = None
    labels: tuple[str, ...] = ()
    dtype: str | None = None
    stacked: bool = False

    def steps(self, checkpoint: Checkpoint) -> Iterator[Changed]:
        """Yields the checkpoint after each change."""
        changes: list[tuple[bool, Any]] = [
            (self.patch_size is not None, lambda c: with_patch_size(c, self.patch_size or 0)),
            (self.resolution is not None, lambda c: with_resolution(c, self.resolution or 0, self.rule)),
            (self.text_length is not None, lambda c: with_text_length(c, self.text_length or 0)),
            (bool(self.labels), lambda c: with_labels(c, list(self.labels))),
            (self.dtype is not None, lambda c: with_dtype(c, self.dtype or "float32")),
        ]
        for wanted, change in changes:
            if wanted:
                changed = change(checkpoint)
                checkpoint = changed.checkpoint
                yield changed


@dataclasses.dataclass(frozen=True)
class Plan:
    """A conversion that is ready to be written.

    Attributes:
      source, destination: the files.
      format: of the destination.
      checkpoint: what will be written.
      said: what was changed, one sentence each.
      rows: (parameter, shape, type, name in the source or "-", name in the destination).
      options: of the writer.
    """

    source: Path
    destination: Path
    format: str
    checkpoint: Checkpoint
    said: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...], str, str, str], ...]
    options: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Size of the parameters in bytes."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for _, shape, dtype, _, _ in self.rows)


def plan(source: str | os.PathLike[str], destination: str | os.PathLike[str], to: str, changes: Changes) -> Plan:
    """Reads headers, makes the changes, and says which tensor goes where.

    Raises:
      FileNotFoundError, ValueError: as `read_checkpoint`, or if a change cannot be made.
    """
    if to not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {to!r}")
    contents = read_contents(source)
    if Path(destination).resolve() == contents.path.resolve():
        raise ValueError(f"{destination}: expected another place than the source to write to")
    architecture = contents.architecture
    if changes.tower is not None and not architecture.endswith(TOWERS[changes.tower]):
        architecture = architecture.removesuffix("ForImageClassification").removesuffix("Model") + TOWERS[changes.tower]
    checkpoint = select(contents, architecture)
    keys = {
        row.path: row.key for row in FORMATS[contents.format].table(checkpoint.config, architecture, contents.layout)
    }
    said = [f"{changes.tower} tower alone"] if changes.tower else []
    for changed in changes.steps(checkpoint):
        checkpoint = changed.checkpoint
        said.append(changed.said)
    options: dict[str, Any] = {}
    layout = dict(contents.layout) if contents.format == to else {}
    if to == "big_vision" and changes.stacked:
        options["stacked"] = [name for name in ("text_model", "vision_model") if name in checkpoint.params]
        layout["stacked"] = options["stacked"]
    flat = flatten(checkpoint.params)
    rows = tuple(
        (row.path, row.shape, flat[row.path].dtype.name, keys.get(row.path, "-"), row.key)
        for row in FORMATS[to].table(checkpoint.config, checkpoint.architecture, layout)
    )
    return Plan(contents.path, Path(destination), to, checkpoint, tuple(said), rows, options)


def carry_out(plan: Plan, advance: Callable[[int], object] = lambda _: None) -> dict[str, Any]:
    """Writes, copies the files of tokenizer and image processor along, reads back and compares every bit.

    Args:
      advance: is told the bytes of each parameter that is about to be written, and of each that is compared.

    Returns:
      `tensors` compared, `different` names, `bytes` written, `copied` file names.

    Raises:
      ValueError: if the format cannot hold the checkpoint.
      OSError: if it cannot be written.
    """
    written = flatten(plan.checkpoint.params)
    told = {path: _telling(x, advance) for path, x in written.items()}
    followed = dataclasses.replace(plan.checkpoint, params=unflatten(told))
    write_checkpoint(plan.destination, followed, plan.format, **plan.options)
    copied = _copy_side_files(plan) if plan.destination.is_dir() else []
    read = flatten(read_checkpoint(plan.destination).params)
    different = sorted(set(read) ^ set(written))
    for path in set(read) & set(written):
        if not _same(read[path], written[path]):
            different.append(path)
        advance(math.prod(written[path].shape) * np.dtype(written[path].dtype).itemsize)
    files = plan.destination.rglob("*") if plan.destination.is_dir() else [plan.destination]
    size = sum(file.stat().st_size for file in files if file.is_file())
    return {"tensors": len(written), "different": different, "bytes": size, "copied": copied}


def _telling(x: Any, advance: Callable[[int], object]) -> LazyArray:
    """Returns the same array, which says so when it is first looked at."""
    shape, dtype = tuple(x.shape), np.dtype(x.dtype)
    untold = [math.prod(shape) * dtype.itemsize]

    def make() -> np.ndarray:
        while untold:
            advance(untold.pop())
        return np.asarray(x)

    return LazyArray(shape, dtype, make)


def _same(one: Any, two: Any) -> bool:
    one, two = np.asarray(one), np.asarray(two)
    same = one.dtype == two.dtype and one.shape == two.shape
    # As whole numbers: NaN equals itself then, and -0.0 is not 0.0.
    bits = np.dtype(f"u{one.dtype.itemsize}")
    same = same and bool((np.ascontiguousarray(one).view(bits) == np.ascontiguousarray(two).view(bits)).all())
    release(one)
    release(two)
    return same


def _copy_side_files(plan: Plan) -> list[str]:
    """Copies what a processor is made of; the image processor's size follows a changed resolution."""
    home = plan.source if plan.source.is_dir() else plan.source.parent
    size = getattr(getattr(plan.checkpoint.config, "vision_config", plan.checkpoint.config), "image_size", None)
    copied = []
    for name in (*TOKENIZER_FILES, *PROCESSOR_FILES):
        if not (home / name).is_file():
            continue
        if name in PROCESSOR_FILES and size is not None:
            d = read_json(home / name, "it holds the image processor")
            for part in (d, d.get("image_processor")):
                if isinstance(part, dict) and isinstance(part.get("size"), dict) and "height" in part["size"]:
                    part["size"] = {**part["size"], "height": size, "width": size}
            write_atomically(plan.destination / name, (json.dumps(d, indent=2, sort_keys=True) + "\n").encode())
        else:
            shutil.copyfile(inside(home / name), plan.destination / name)
        copied.append(name)
    return copied
