"""Conversion of a checkpoint to another format, with optional changes; the result is read back and compared.

`siglip-jax convert` and the scripts under `convert/` are the command line of `convert`.
"""

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from siglip_jax._callbacks import Counter, OnProgress
from siglip_jax._checks import DTYPES, check_choice
from siglip_jax._files import folder_of, new_directory, output_path, refuse_existing
from siglip_jax._hub import PROCESSOR_FILES as IMAGE_FILES
from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.formats import FORMATS
from siglip_jax.checkpoints.keymap import ARCHITECTURES, TEXT, VISION
from siglip_jax.checkpoints.mapped import release
from siglip_jax.checkpoints.read import read_checkpoint, read_contents, select
from siglip_jax.checkpoints.side_files import copy_side_files
from siglip_jax.checkpoints.surgery import (
    Changed,
    with_dtype,
    with_labels,
    with_patch_size,
    with_resolution,
    with_text_length,
)
from siglip_jax.checkpoints.write import check_write_options, write_checkpoint
from siglip_jax.configs.towers import tower_config
from siglip_jax.params import LazyArray, Shape, flatten, unflatten
from siglip_jax.processing.beside import image_processor_beside, tokenizer_beside
from siglip_jax.processing.text.settings import SENTENCEPIECE, TOKENIZERS

logger = logging.getLogger(__name__)

VOCABULARIES = (SENTENCEPIECE, TOKENIZERS)
TOWERS = {"text": "TextModel", "image": "VisionModel"}


class Moved(NamedTuple):
    """The source and the destination of a parameter.

    Attributes:
      parameter: path of the parameter.
      shape: shape of the parameter in the tree.
      dtype: name of the dtype that is written.
      source: name of the tensor that is read; "-" for a fresh parameter.
      destination: name of the tensor that is written.
    """

    parameter: str
    shape: Shape
    dtype: str
    source: str
    destination: str


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The result of a conversion, or the plan of a dry run.

    Attributes:
      source: local directory or file of the source.
      destination: directory or file of the result.
      source_format: format of the source.
      format: format of the result.
      architecture: model class of the result, such as "SiglipModel".
      changes: one sentence per change to the parameters, and to their names in the source.
      rows: source and destination of each parameter.
      written: whether the result was written; False for a dry run.
      bytes: size of the result in bytes; 0 for a dry run.
      different: paths of the parameters whose bits differ when read back; () if all are equal.
      copied: names of the copied or written files of the tokenizer and the image processor.

    Example:
      >>> import siglip_jax
      >>> plan = convert(siglip_jax.assets.BUNDLED_MODEL, "model.npz", "big_vision", tower="image", dry_run=True)
      >>> plan.architecture, plan.changes, plan.rows[-1].destination
      ('SiglipVisionModel', ('image tower alone',), 'params/img/MAPHead_0/MlpBlock_0/Dense_1/bias')
    """

    source: Path
    destination: Path
    source_format: str
    format: str
    architecture: str
    changes: tuple[str, ...]
    rows: tuple[Moved, ...]
    written: bool = False
    bytes: int = 0
    different: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Converts the result to types that JSON can hold.

        Returns:
          A dictionary of the formats and changes, with the rows of a dry run, or else the numbers of a written result.
        """
        facts: dict[str, Any] = {
            "source": str(self.source),
            "destination": str(self.destination),
            "from": self.source_format,
            "to": self.format,
            "architecture": self.architecture,
            "changes": list(self.changes),
        }
        if not self.written:
            names = ("parameter", "shape", "dtype", "from", "to")
            return facts | {"rows": [dict(zip(names, row, strict=True)) for row in self.rows]}
        return facts | {
            "tensors": len(self.rows),
            "different": list(self.different),
            "bytes": self.bytes,
            "copied": list(self.copied),
        }


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    format: str,
    *,
    tower: str | None = None,
    patch_size: int | None = None,
    resolution: int | None = None,
    rule: str = "bicubic",
    text_length: int | None = None,
    labels: Sequence[str] = (),
    dtype: str | None = None,
    dry_run: bool = False,
    on_progress: OnProgress | None = None,
    base: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Conversion:
    """Converts a checkpoint to a format, with optional changes, and verifies the result bit by bit.

    The files of the tokenizer and the image processor are copied, except into an .npz file. Where the source has none,
    those of the released checkpoint of the same sizes are written; the tokenizer is fetched from the Hub or its cache.
    The result is read back and compared with the parameters that were written.

    Args:
      source: local directory or file, or a Hub name; the format is recognised from the files.
      destination: directory to write, or an .npz file for "big_vision". It must not exist yet, but for an empty
        directory, and appears only when it is complete.
      format: format to write: "huggingface", "big_vision", "open_clip", "timm" or "orbax".
      tower: "text" or "image" to write only that tower; None: everything that the source holds.
      patch_size: new height and width of a patch in pixels, to which the patch embedding is resized; None: unchanged.
      resolution: new height and width of an image in pixels, for which the position table is resized; None: unchanged.
        A copied image processor is set to the same size.
      rule: interpolation of `resolution`: "bicubic", as in `transformers`, or "big_vision", as in big_vision's loader.
      text_length: new length of the text positions in tokens; None: unchanged.
      labels: names of the labels of a new classifier, initialised with zeros; (): no new classifier.
      dtype: "float32", "bfloat16" or "float16" to convert the parameters to; None: unchanged. `logit_scale` and
        `logit_bias` keep their dtype.
      dry_run: whether to return the plan without writing anything.
      on_progress: called with (bytes done, total bytes); every byte counts twice, once when written and once when read
        back. None: not called.
      base: checkpoint to merge a LoRA adapter of PEFT into, where the source is one; None: the one that its
        configuration names.
      **options: options of the format, as for `write_checkpoint`; `stacked=True` stacks the layers in an .npz file.
        Values of None and False are ignored.

    Returns:
      The result, or with `dry_run` the plan.

    Raises:
      FileNotFoundError: if the source does not exist.
      FileExistsError: if the destination exists.
      ValueError: if the source is damaged, a change or an option is invalid, or the format cannot hold the result.
      OSError: if the destination cannot be written.

    Example:
      >>> import siglip_jax, tempfile
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     done = convert(siglip_jax.assets.BUNDLED_MODEL, f"{directory}/model.npz", "big_vision", dtype="float32")
      >>> done.changes, done.different
      (('parameters converted to float32',), ())
    """
    check_choice("format", format, [name for name, known in FORMATS.items() if not known.inference_only])
    options = {name: value for name, value in options.items() if value not in (None, False)}
    check_write_options(format, options)
    if dtype is not None:
        check_choice("dtype", dtype, DTYPES)
    target = output_path(destination, "destination")
    contents = read_contents(source, base=base)
    if target.resolve() == contents.path.resolve():
        raise ValueError(f"{destination}: the destination must not be the source, got the same path; choose another")
    architecture = contents.architecture
    if tower is not None:
        check_choice("tower", tower, TOWERS)
        if not architecture.endswith(TOWERS[tower]):
            architecture = architecture.removesuffix("ForImageClassification").removesuffix("Model") + TOWERS[tower]
    checkpoint = select(contents, architecture)
    table = FORMATS[contents.format].table(checkpoint.config, architecture, contents.layout)
    keys = {row.path: row.key for row in table}
    said = [*contents.notes, *([f"{tower} tower alone"] if tower else [])]
    changes: list[tuple[bool, Callable[[Checkpoint], Changed]]] = [
        (patch_size is not None, lambda c: with_patch_size(c, patch_size or 0)),
        (resolution is not None, lambda c: with_resolution(c, resolution or 0, rule)),
        (text_length is not None, lambda c: with_text_length(c, text_length or 0)),
        (bool(labels), lambda c: with_labels(c, list(labels))),
        (dtype is not None, lambda c: with_dtype(c, dtype or "float32")),
    ]
    for wanted, change in changes:
        if wanted:
            checkpoint, sentence = change(checkpoint)
            said.append(sentence)
    flat = flatten(checkpoint.params)
    layout = FORMATS[format].layout(checkpoint, **options)
    written = FORMATS[format].table(checkpoint.config, checkpoint.architecture, layout)
    rows = tuple(
        Moved(row.path, row.shape, flat[row.path].dtype.name, keys.get(row.path, "-"), row.key) for row in written
    )
    conversion = Conversion(contents.path, target, contents.format, format, checkpoint.architecture, tuple(said), rows)
    return conversion if dry_run else _carried_out(conversion, checkpoint, options, on_progress)


def _carried_out(
    conversion: Conversion, checkpoint: Checkpoint, options: dict[str, Any], on_progress: OnProgress | None
) -> Conversion:
    params = flatten(checkpoint.params)
    sizes = {path: math.prod(x.shape) * np.dtype(x.dtype).itemsize for path, x in params.items()}
    counter = Counter(on_progress, 2 * sum(sizes.values()))
    counted = {path: _counting(x, sizes[path], counter) for path, x in params.items()}
    followed = dataclasses.replace(checkpoint, params=unflatten(counted))
    with _complete(conversion.destination, FORMATS[conversion.format].suffix) as target:
        write_checkpoint(target, followed, conversion.format, **options)
        copied = _copy_side_files(conversion, checkpoint, target) if target.is_dir() else []
        read = flatten(read_checkpoint(target).params)
        different = set(read) ^ set(params)
        for path in set(read) & set(params):
            if not _same(read[path], params[path]):
                different.add(path)
            counter.add(sizes[path])
        files = target.rglob("*") if target.is_dir() else [target]
        size = sum(file.stat().st_size for file in files if file.is_file())
    return dataclasses.replace(
        conversion, written=True, bytes=size, different=tuple(sorted(different)), copied=tuple(copied)
    )


@contextlib.contextmanager
def _complete(destination: Path, suffix: str | None) -> Iterator[Path]:
    """Yields the path to write to: a temporary one for a directory, which takes its name when it is complete."""
    if suffix is None:
        with new_directory(destination) as aside:
            yield aside
    else:
        refuse_existing(destination)
        yield destination


def _counting(x: Any, size: int, counter: Counter) -> LazyArray:
    """Returns a lazy view of an array that adds its size to a counter on first access."""
    uncounted = [size]

    def make() -> np.ndarray:
        while uncounted:
            counter.add(uncounted.pop())
        return np.asarray(x)

    return LazyArray(tuple(x.shape), np.dtype(x.dtype), make)


def _same(one: Any, two: Any) -> bool:
    one, two = np.asarray(one), np.asarray(two)
    same = one.dtype == two.dtype and one.shape == two.shape
    # Compared as integers: NaN equals itself, and -0.0 differs from 0.0.
    bits = np.dtype(f"u{one.dtype.itemsize}")
    same = same and bool((np.ascontiguousarray(one).view(bits) == np.ascontiguousarray(two).view(bits)).all())
    release(one)
    release(two)
    return same


def _copy_side_files(conversion: Conversion, checkpoint: Checkpoint, target: Path) -> list[str]:
    """Copies the processor beside the source; what the source lacks is that of the released checkpoint of its sizes."""
    source = folder_of(conversion.source)
    config: Any = checkpoint.config
    size = getattr(tower_config(config, VISION), "image_size", None)
    copied = copy_side_files(source, target, size)
    parts = ARCHITECTURES[checkpoint.architecture]
    missing: list[tuple[str, tuple[str, ...], Callable[..., Any]]] = [
        (VISION, IMAGE_FILES, image_processor_beside),
        (TEXT, VOCABULARIES, tokenizer_beside),
    ]
    for part, names, find in missing:
        if part not in parts or set(names) & set(copied):
            continue
        try:
            found = find(source, config)
        except (FileNotFoundError, ValueError) as error:
            logger.warning("%s has no processor of its own: %s", conversion.destination, error)
            continue
        if part == VISION and size is not None and "height" in (found.size or {}):
            found.size = {"height": size, "width": size}
        before = {file.name for file in target.iterdir()}
        found.save_pretrained(target)
        copied += sorted({file.name for file in target.iterdir()} - before)
    return copied
