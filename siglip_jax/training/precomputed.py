"""Images embedded once, for a run with a frozen image tower, so that a step computes the text tower only.

The files are kept under a fingerprint of everything that made them: weights, processor, data and their order.
"""

import copy
import functools
import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float

from siglip_jax._callbacks import Counter, OnProgress
from siglip_jax._files import check_space, written_aside
from siglip_jax._npy import load_npy
from siglip_jax.data.example import Example, Source, image_id
from siglip_jax.data.fingerprint import fingerprint
from siglip_jax.data.pipeline import ordered
from siglip_jax.data.transform import Transform
from siglip_jax.inference.encoder import NotFiniteError, not_finite
from siglip_jax.models.elementwise import normalize
from siglip_jax.params import flatten
from siglip_jax.training.objective import Objective

BATCH = 64  # images of a step
PART = 8192  # images of a file


def precompute_image_embeds(
    objective: Objective,
    params: Any,
    source: Source,
    transform: Transform,
    directory: Path,
    *,
    made_by: str,
    on_progress: OnProgress | None = None,
) -> "Precomputed":
    """Embeds every image of a source; an interrupted call is resumed.

    Files are reused only for the same source and `made_by`; those of others in `directory` are removed.

    Several processes share the files, and all of them must call this function.

    Args:
      objective: objective whose module has an image tower and uses no other process.
      params: parameters of the module, a nested dict.
      source: examples to embed the images of.
      transform: makes rows of examples; its augmentation must be "none".
      directory: directory of the embeddings, which belongs to this function; made if need be. A folder in it, named
        by a fingerprint, holds float32 files, one for every 8,192 images.
      made_by: fingerprint of the weights and of the processor, as from `tower_fingerprint`.
      on_progress: called with (images done, images in all); None: nothing is called.

    Returns:
      The source, with an embedding (E,) float32 in place of each image.
    """
    of_source = fingerprint(source, times=True)
    made_of = hashlib.sha256(f"{made_by} {of_source} {PART}".encode()).hexdigest()[:16]
    if jax.process_index() == 0:
        _remove_others(directory, made_of)
    directory = directory / made_of
    directory.mkdir(parents=True, exist_ok=True)
    images = copy.copy(transform)
    images.captions = images.labels = False

    @jax.jit
    def embed(params: Any, pixels: Array) -> Float[Array, "n embed"]:
        return normalize(
            objective.apply(params, objective.prepare(jax.random.key(0), pixels), method="get_image_features")
        )

    parts, counter = [], Counter(on_progress, len(source))
    for number, start in enumerate(range(0, len(source), PART)):
        stop = min(start + PART, len(source))
        path = directory / f"{start:012d}.npy"
        if not path.is_file() and number % jax.process_count() == jax.process_index():
            found = {}
            for batch in ordered(_Slice(source, start, stop), images, BATCH):
                pixels = batch.arrays["pixels"]
                short = BATCH - len(pixels)
                padded = np.concatenate([pixels, np.repeat(pixels[-1:], short, axis=0)]) if short else pixels
                embeds = np.asarray(embed(params, padded))
                for row in not_finite(embeds[: len(pixels)]):
                    raise NotFiniteError(source[start + int(batch.arrays["index"][row])].name)
                found |= dict(zip(batch.arrays["index"].tolist(), embeds, strict=False))
                counter.add(len(pixels) + len(batch.skipped))
            unread = np.full_like(next(iter(found.values())), np.nan)
            rows = np.stack([found.get(i, unread) for i in range(stop - start)])
            check_space(directory, rows.nbytes)  # numpy does not say which file it could not write
            with written_aside(path) as aside, open(aside, "wb") as out:
                np.save(out, rows)
        else:
            counter.add(stop - start)
        parts.append(path)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"embedded: {directory}")
    return Precomputed(source, parts)


def tower_fingerprint(objective: Objective, params: Mapping[str, Any], processor: str) -> str:
    """Returns a hash of what an embedding of an image depends on beside the image.

    Args:
      objective: objective whose module has an image tower.
      params: parameters of the module on this process, a nested dict.
      processor: fingerprint of the processor.

    Returns:
      SHA-256 in hexadecimal.
    """
    module: Any = objective.module
    digest = hashlib.sha256(repr((processor, str(module.dtype), module.config.vision_config.to_dict())).encode())
    for path, x in sorted(flatten(params).items()):
        if path.startswith("vision_model/"):
            digest.update(f"{path} {x.shape} {x.dtype}\n".encode())
            digest.update(np.ascontiguousarray(x).view(np.uint8))
    return digest.hexdigest()


def _remove_others(directory: Path, wanted: str) -> None:
    """Removes what a directory of embeddings holds beside the wanted folder."""
    for found in directory.iterdir() if directory.is_dir() else ():
        if found.name != wanted:
            shutil.rmtree(found) if found.is_dir() else found.unlink()


class Embedding(NamedTuple):
    """An embedding in place of an image.

    Attributes:
      embed: L2-normalised embedding of the image, (E,) float32.
      image_id: hash of the image itself.
    """

    embed: Float[np.ndarray, " embed"]
    image_id: int


class Precomputed:
    """A source with embeddings in place of images, memory-mapped from files.

    Attributes:
      source: source of the examples.
      parts: files of the embeddings, in order.
      classes: names of the classes of the source.
      path: path of the source.
      fingerprint: fingerprint of the source.
    """

    def __init__(self, source: Source, parts: list[Path]):
        """Keeps the source and the files; nothing is read."""
        self.source, self.parts = source, parts
        self.classes = source.classes
        self.path = getattr(source, "path", type(source).__name__)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the source."""
        return fingerprint(self.source)

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        """Returns an example whose image is an `Embedding`.

        Raises:
          ValueError: if the image was unreadable when it was embedded.
        """
        example = self.source[index]
        row = self._part(index // PART)[index % PART]
        if not np.isfinite(row[0]):
            raise ValueError(f"{example.name}: the image cannot be read")
        # The identity is that of the image: embeddings of the same image may differ in their last bits.
        embedding: Any = Embedding(np.array(row), image_id(example.image))
        return example._replace(image=embedding)

    def _part(self, number: int) -> np.ndarray:
        return _mapped(self.parts[number])


@functools.lru_cache(maxsize=64)
def _mapped(path: Path) -> np.ndarray:
    return load_npy(path)


class PrecomputedTransform(Transform):
    """Makes rows of the examples of `Precomputed`, with `image_embeds` (rows, E) float32 in place of `pixels`."""

    def _pixels(self, example: Example, rng: np.random.Generator) -> Any:
        return example.image.embed  # type: ignore[missing-attribute]  # an `Embedding`

    def _image_id(self, example: Example) -> int:
        return example.image.image_id  # type: ignore[missing-attribute]

    def stack(self, rows: Any) -> dict[str, np.ndarray]:
        """Returns the arrays of a batch.

        Args:
          rows: rows of the batch, one for each example.

        Returns:
          Arrays by name, each with a row for an example.
        """
        arrays = super().stack(rows)
        arrays["image_embeds"] = arrays.pop("pixels")
        return arrays


class _Slice:
    """The examples of a source from `start` to `stop`."""

    def __init__(self, source: Source, start: int, stop: int):
        self.source, self.start, self.stop = source, start, stop
        self.classes = source.classes

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Example:
        return self.source[self.start + index]
