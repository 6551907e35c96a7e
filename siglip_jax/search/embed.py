"""Embeds images or texts into a collection: the job of `siglip-jax embed`, as a function."""

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from siglip_jax._callbacks import OnProgress, OnUnreadable
from siglip_jax._files import MAX_PIXELS, output_path
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.load import load
from siglip_jax.search.items import Items, open_items
from siglip_jax.search.making import embed_collection, share_held
from siglip_jax.search.manifest import MANIFEST, read_manifest
from siglip_jax.search.updating import STAGED, settle, update_collection


@dataclasses.dataclass(frozen=True)
class EmbedResult:
    """What a call of `embed` did.

    Attributes:
      out: directory of the collection.
      kind: "images" or "texts".
      items: number of items in the source.
      embedded: items that this call embedded.
      unreadable: items that this call could not read.
      seconds: time it took, without opening the source and loading the model.
      parts_left: parts that other processes have not done yet; 0 once the collection is complete.
      rows: embeddings in the complete collection; None while parts are left.
      all_unreadable: unreadable items in the complete collection, listed in `errors.jsonl`; None while parts are left.

    Example:
      >>> result = EmbedResult(Path("out"), "images", items=10, embedded=9, unreadable=1, seconds=0.5, parts_left=0)
      >>> f"{result.embedded / result.seconds:.0f} images/s"
      '18 images/s'
    """

    out: Path
    kind: str
    items: int
    embedded: int
    unreadable: int
    seconds: float
    parts_left: int
    rows: int | None = None
    all_unreadable: int | None = None


def embed(
    source: str | os.PathLike[str] | Items,
    out: str | os.PathLike[str],
    model: str | os.PathLike[str] | Siglip | None = None,
    *,
    dtype: str | None = None,
    quantization: str | None = None,
    format: str | None = None,
    shard: tuple[int, int] | None = None,
    part_size: int | None = None,
    batch_size: int | None = None,
    storage: str | None = None,
    update: bool = False,
    columns: Sequence[str] = (),
    image_key: str | None = None,
    split: str | None = None,
    kind: str | None = None,
    root: str | os.PathLike[str] | None = None,
    max_pixels: int = MAX_PIXELS,
    on_progress: OnProgress | None = None,
    on_unreadable: OnUnreadable | None = None,
) -> EmbedResult:
    """Embeds every image of a data set, or every line of a text file, into a directory of numbered parts.

    A call that was interrupted or killed resumes: the same call embeds only what is missing, and the files end with the
    same bytes.

    Args:
      source: folder of images, tar shards, Parquet, Arrow, JSON lines or CSV beside images, a .txt with a text a line,
        or opened items.
      out: directory for the embeddings; made if need be.
      model: Hub name, directory or loaded model; None: the bundled model.
      dtype: compute dtype, "float32", "bfloat16" or "float16"; None: float32. Not for a loaded model.
      quantization: "int8", "int4", "nf4" or "fp8" to hold the kernels in; None: floats. Not for a loaded model.
      format: "npy" or "parquet"; None: that of the collection, or "npy".
      shard: (i, n) to do part p if p % n == i; None: this process's share among those of `jax.distributed`.
      part_size: items of a part; None: that of the collection, or 2048.
      batch_size: items of a step; None: that of the collection, or a size for model and device.
      storage: dtype of the stored embeddings, "float32" or "float16", which takes half the space and changes cosines by
        less than 0.001; None: that of the collection, or "float32".
      update: whether a complete collection becomes one of the source as it is now: new and changed items are embedded,
        those that are gone are removed, all others are kept. The collection can be searched meanwhile. Without it, a
        changed source is refused. Not with `shard`.
      columns: names of columns of a table, Parquet or Arrow that are stored beside the embeddings and come with hits.
        Not for opened items, which name their own.
      image_key: column, key or ending of the images; None: one of the usual names.
      split: split of the data set to take; None: "train" if it has splits.
      kind: which kind of data set to open in a folder of several, as `siglip_jax.data.open_source` takes it; None:
        there must be only one.
      root: folder that the images of a table must be in, for absolute paths and `..`; None: that of the table.
      max_pixels: largest number of pixels of an image; a larger one is unreadable. Not for a loaded model.
      on_progress: called with (items done, items that this call has to do); None: nothing is called.
      on_unreadable: called with (index of an item, error); None: unreadable items are only listed.

    Returns:
      Counts of the items done by this call, and of the rows of the collection once it is complete.

    Raises:
      BlockingIOError: if another process is embedding the same share into `out`.
      OSError: if the source does not exist or `out` cannot be written.
      ValueError: if `out` holds another collection, or an argument is impossible.

    Example:
      >>> import siglip_jax, tempfile
      >>> from siglip_jax.search import embed, open_collection
      >>> with tempfile.TemporaryDirectory() as out:
      ...     result = embed(siglip_jax.assets.EXAMPLES / "labels.txt", out)
      ...     len(open_collection(out)), result.rows
      (64, 64)
    """
    out = output_path(out)
    if isinstance(source, str | os.PathLike):
        items = open_items(source, image_key=image_key, split=split, kind=kind, root=root, columns=columns)
    else:
        items = source
    name: str | None = None
    if isinstance(model, Siglip):
        siglip = model
    else:
        siglip = load(model, dtype=dtype, quantization=quantization, max_pixels=max_pixels)
        # Absolute, so that a search finds the model from another directory.
        name = None if model is None else os.path.abspath(model) if Path(model).exists() else os.fspath(model)
    start = time.monotonic()
    layout = {"format": format, "part_size": part_size, "batch_size": batch_size, "storage": storage}
    calls: dict[str, Any] = {"on_progress": on_progress, "on_unreadable": on_unreadable}
    directory = Path(out)
    if update and (directory / MANIFEST).exists() and read_manifest(directory).done is not None:
        if shard is not None and shard != (0, 1):
            raise ValueError(f"shard must be None for an update, got {shard[0]}/{shard[1]}; leave it out")
        outcome = update_collection(siglip, items, directory, model_name=name, asked=layout, **calls)
    else:
        if (directory / STAGED).is_dir():  # an update was killed while it moved its files
            with share_held(directory, 0, 1):
                settle(directory)
        outcome = embed_collection(siglip, items, directory, model_name=name, shard=shard, **layout, **calls)
    seconds = time.monotonic() - start
    result = EmbedResult(
        Path(out), items.kind, len(items), outcome.embedded, outcome.unreadable, seconds, outcome.parts_left
    )
    if outcome.parts_left:
        return result
    done = read_manifest(Path(out)).done or {}
    return dataclasses.replace(result, rows=done["rows"], all_unreadable=done["unreadable"])
