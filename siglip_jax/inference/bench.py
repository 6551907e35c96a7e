"""How fast a model is on this machine: loading, preparing images, and each tower by batch size; and peak memory."""

import dataclasses
import functools
import importlib.metadata
import io
import itertools
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import PIL.Image

from siglip_jax._callbacks import Counter, OnProgress
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.load import load
from siglip_jax.inference.stream import in_threads
from siglip_jax.models.cost import image_flops, text_flops

FEWEST = 3  # repetitions of a figure, however long they take
IMAGE_SIZE = (640, 480)  # pixels of the JPEG that is decoded and resized
IMAGES = 16  # prepared in one repetition
TEXT = "a photo of a cat and a dog on a sofa"


@dataclasses.dataclass(frozen=True)
class Speed:
    """How long a batch takes, over the repetitions of a figure.

    Attributes:
      what: "images" or "texts" embedded by a tower, or "image preparation", decoded and resized.
      seconds: a batch, the median; `low` and `high` are the quartiles.
      per_second: rows by the median.
      gflops_per_second: matrix products of the tower, by the median; None where there is no tower.
    """

    what: str
    batch_size: int
    repetitions: int
    seconds: float
    low: float
    high: float
    per_second: float
    gflops_per_second: float | None


def bench(
    model: str | os.PathLike[str] | None = None,
    batch_sizes: Sequence[int] = (1, 8, 32),
    *,
    dtype: str = "float32",
    quantization: str | None = None,
    seconds: float = 2.0,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Measures a model on this machine: what `siglip-jax bench` does.

    A tower is timed from arrays in host memory to embeddings in host memory.

    Args:
      model: Hub name or directory; None: the bundled model.
      batch_sizes: rows that a tower is given at once.
      dtype: dtype of parameters and computation.
      quantization: "int8", "int4", "nf4" or "fp8" to hold the kernels in; None: floats.
      seconds: how long each speed is measured.
      on_progress: called with (speeds measured, speeds in all).

    Returns:
      A dictionary that JSON can hold: `model`, `dtype`, `quantization`, `load_seconds`, `first_embedding_seconds`
      (loading and compiling included), `speed` (a `Speed` for the preparation of images and for each tower and batch
      size), `peak_bytes` and `versions`.

    Raises:
      FileNotFoundError: if the checkpoint does not exist.
      ValueError: if it is not a SigLIP checkpoint, or an option is unknown.

    Example:
      >>> facts = bench(batch_sizes=[1], seconds=0.01)
      >>> [speed["what"] for speed in facts["speed"]]
      ['image preparation', 'images', 'texts']
    """
    start = time.perf_counter()
    siglip = load(model, dtype=dtype, quantization=quantization)
    loading = time.perf_counter() - start
    first = loading + first_embedding(siglip)
    sizes = list(dict.fromkeys(batch_sizes))
    counter = Counter(on_progress, 1 + 2 * len(sizes))
    speeds = []
    for speed in itertools.chain([preparation(siglip, seconds)], towers(siglip, sizes, seconds)):
        speeds.append(dataclasses.asdict(speed))
        counter.add(1)
    return {
        "model": "the bundled model" if model is None else os.fspath(model),
        "dtype": dtype,
        "quantization": quantization,
        "load_seconds": loading,
        "first_embedding_seconds": first,
        "speed": speeds,
        "peak_bytes": peak_memory(),
        "versions": versions(),
    }


def first_embedding(siglip: Siglip) -> float:
    """Returns the seconds to embed one image and wait for it: with a model just loaded, mostly to compile."""
    start = time.perf_counter()
    siglip.encode_image(PIL.Image.new("RGB", IMAGE_SIZE))
    return time.perf_counter() - start


def preparation(siglip: Siglip, seconds: float) -> Speed:
    """Times decoding and resizing of a JPEG of `IMAGE_SIZE` pixels, in threads as `encode_image` does it."""
    file = jpeg()

    def prepare() -> None:
        for future in in_threads(siglip.pixels, [file] * IMAGES, workers=siglip.choices.threads, ahead=IMAGES):
            future.result()

    return _speed("image preparation", IMAGES, repeated(prepare, seconds), None)


def towers(siglip: Siglip, batch_sizes: Sequence[int], seconds: float) -> Iterator[Speed]:
    """Times each tower at each batch size: arrays in host memory to normalised embeddings in host memory.

    Args:
      batch_sizes: rows that the device is given at once.
      seconds: how long each figure is measured, not counting one repetition before, which may compile.
    """
    pixels = siglip.pixels(jpeg())
    ids = siglip.processor(text=[TEXT], max_length=siglip.config.text_config.max_position_embeddings)["input_ids"]
    vision = siglip.config.vision_config
    tokens = None if pixels[0].ndim == 3 else len(pixels[0])  # of variable resolution: rows of patches
    for what, row, embed, flops in (
        ("images", pixels, siglip.embed_pixels, image_flops(vision, tokens)),
        ("texts", (ids[0],), siglip.embed_tokens, text_flops(siglip.config.text_config)),
    ):
        for size in batch_sizes:
            batch = [np.stack([array] * size) for array in row]
            taken = repeated(functools.partial(embed, *batch, batch_size=size), seconds)
            yield _speed(what, size, taken, flops)


def repeated(function: Callable[[], object], seconds: float) -> list[float]:
    """Calls once, and then again until `seconds` are over and there are `FEWEST`; returns what these took."""
    function()
    taken: list[float] = []
    while len(taken) < FEWEST or sum(taken) < seconds:
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return taken


def peak_memory() -> dict[str, int]:
    """Returns the most bytes that this process had in memory, and where the device counts them, on the device."""
    unit = 1 if sys.platform == "darwin" else 1024
    memory = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    used = jax.local_devices()[0].memory_stats()
    return memory | ({"device": used["peak_bytes_in_use"]} if used and "peak_bytes_in_use" in used else {})


def jpeg() -> bytes:
    """Returns an image of edges, gradients and grain as a file of as many bytes as a camera's."""
    rng = np.random.default_rng(0)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(IMAGE_SIZE)
    grain = rng.normal(scale=8, size=(IMAGE_SIZE[1], IMAGE_SIZE[0], 3))
    file = io.BytesIO()
    PIL.Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def _speed(what: str, size: int, taken: list[float], flops: int | None) -> Speed:
    low, middle, high = np.quantile(taken, (0.25, 0.5, 0.75)).tolist()
    rate = size / middle
    return Speed(what, size, len(taken), middle, low, high, rate, flops and rate * flops / 1e9)


def versions() -> dict[str, str]:
    """Returns the versions that matter in a bug report, and the devices."""
    names = ("siglip_jax", "jax", "jaxlib", "flax", "numpy")
    found = {name: importlib.metadata.version(name) for name in names if _installed(name)}
    return {"python": platform.python_version(), **found, "devices": ", ".join(map(str, jax.devices()))}


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
