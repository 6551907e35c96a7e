"""Speed of a model on this machine: loading, image preparation and each tower by batch size, and peak memory."""

import dataclasses
import functools
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

from siglip_jax import _requirements
from siglip_jax._callbacks import Counter, OnProgress
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.load import load
from siglip_jax.inference.stream import in_threads
from siglip_jax.models.cost import image_flops, text_flops

FEWEST = 3  # least number of repetitions of a measurement, however long they take
IMAGE_SIZE = (640, 480)  # width and height in pixels of the JPEG that is decoded and resized
IMAGES = 16  # number of images prepared per repetition
TEXT = "a photo of a cat and a dog on a sofa"


@dataclasses.dataclass(frozen=True)
class Speed:
    """The time that a batch takes, over the repetitions of a measurement.

    Attributes:
      what: "images" or "texts" (embedded by a tower), or "image preparation" (decoded and resized).
      batch_size: number of rows of a batch.
      repetitions: number of batches that were timed.
      seconds: median time of a batch.
      low: first quartile of the times of a batch, in seconds.
      high: third quartile of the times of a batch, in seconds.
      per_second: rows per second at the median time.
      gflops_per_second: 10^9 floating-point operations per second of the tower's matrix products at the median time;
        None for image preparation.
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
    """Measures the speed of a model on this machine.

    A tower is timed from arrays in host memory to embeddings in host memory. Each measurement is preceded by one
    untimed call, which compiles.

    Args:
      model: local directory or weights file, or a Hub name; None: the bundled model.
      batch_sizes: batch sizes at which each tower is measured; duplicates are measured once.
      dtype: dtype of the parameters and of the computation, "float32", "bfloat16" or "float16".
      quantization: number format of the kernels of both towers, "int8", "int4", "nf4" or "fp8"; None: floats.
      seconds: shortest duration of each measurement, in seconds; at least 3 repetitions are timed.
      on_progress: called with (measurements done, measurements in total); None: progress is not reported.

    Returns:
      A dictionary that JSON can hold: `model`, `dtype`, `quantization`, `load_seconds`, `first_embedding_seconds`
      (loading and compiling included), `speed` (a list of dictionaries with the fields of `Speed`, one for image
      preparation and one for each tower and batch size), `peak_bytes` (of the host and, where it is known, the device)
      and `versions`.

    Raises:
      FileNotFoundError: if the checkpoint does not exist.
      ValueError: if it is not a SigLIP checkpoint, or `dtype` or `quantization` is unknown.

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
    """Returns the seconds that embedding one image takes: with a newly loaded model, mostly compilation."""
    start = time.perf_counter()
    siglip.encode_image(PIL.Image.new("RGB", IMAGE_SIZE))
    return time.perf_counter() - start


def preparation(siglip: Siglip, seconds: float) -> Speed:
    """Times the decoding and resizing of a JPEG of `IMAGE_SIZE` pixels, in as many threads as `encode_image` uses."""
    file = jpeg()

    def prepare() -> None:
        for future in in_threads(siglip.pixels, [file] * IMAGES, workers=siglip.choices.threads, ahead=IMAGES):
            future.result()

    return _speed("image preparation", IMAGES, repeated(prepare, seconds), None)


def towers(siglip: Siglip, batch_sizes: Sequence[int], seconds: float) -> Iterator[Speed]:
    """Times each tower at each batch size, from arrays in host memory to normalised embeddings in host memory.

    Args:
      siglip: model to measure.
      batch_sizes: numbers of rows of a batch.
      seconds: shortest duration of each measurement, without one call before it, which may compile.

    Yields:
      The speed of each tower and batch size, image tower first.
    """
    pixels = siglip.pixels(jpeg())
    ids = siglip.processor(text=[TEXT], max_length=siglip.config.text_config.max_position_embeddings)["input_ids"]
    vision = siglip.config.vision_config
    tokens = None if pixels[0].ndim == 3 else len(pixels[0])  # variable resolution: rows of patches
    for what, row, embed, flops in (
        ("images", pixels, siglip.embed_pixels, image_flops(vision, tokens)),
        ("texts", (ids[0],), siglip.embed_tokens, text_flops(siglip.config.text_config)),
    ):
        for size in batch_sizes:
            batch = [np.stack([array] * size) for array in row]
            taken = repeated(functools.partial(embed, *batch, batch_size=size), seconds)
            yield _speed(what, size, taken, flops)


def repeated(function: Callable[[], object], seconds: float) -> list[float]:
    """Calls a function once, then at least `FEWEST` times and for `seconds`; returns the times of the later calls."""
    function()
    taken: list[float] = []
    while len(taken) < FEWEST or sum(taken) < seconds:
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return taken


def peak_memory() -> dict[str, int]:
    """Returns the peak memory of this process in bytes and, if the backend reports it, that of the device."""
    unit = 1 if sys.platform == "darwin" else 1024
    memory = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    used = jax.local_devices()[0].memory_stats()
    return memory | ({"device": used["peak_bytes_in_use"]} if used and "peak_bytes_in_use" in used else {})


def jpeg() -> bytes:
    """Returns a JPEG of edges, gradients and grain, about as many bytes as a photograph of that size."""
    rng = np.random.default_rng(0)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(IMAGE_SIZE)
    grain = rng.normal(scale=8, size=(IMAGE_SIZE[1], IMAGE_SIZE[0], 3))
    file = io.BytesIO()
    PIL.Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def _speed(what: str, size: int, taken: list[float], flops: int | None) -> Speed:
    """Returns the median and the quartiles of the times of a batch of `size` rows of `flops` operations each."""
    low, middle, high = np.quantile(taken, (0.25, 0.5, 0.75)).tolist()
    rate = size / middle
    return Speed(what, size, len(taken), middle, low, high, rate, flops and rate * flops / 1e9)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a bug report needs, and the devices."""
    found = _requirements.versions("siglip_jax", "jax", "jaxlib", "flax", "numpy")
    return {"python": platform.python_version(), **found, "devices": ", ".join(map(str, jax.devices()))}
