"""How fast a model is on this machine: loading, preparing pictures, and each tower by batch size; and peak memory."""

import dataclasses
import functools
import io
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
import PIL.Image

from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.stream import in_threads
from siglip_jax.models.flops import image_flops, text_flops

FEWEST = 3  # repetitions of a figure, however long they take
PICTURE = (640, 480)  # pixels of the JPEG that is decoded and resized
PICTURES = 16  # prepared in one repetition
TEXT = "a photo of a cat and a dog on a sofa"


@dataclasses.dataclass(frozen=True)
class Speed:
    """How long a batch takes, over the repetitions of a figure.

    Attributes:
      what: "images" or "texts" embedded by a tower, or "pictures" decoded and resized.
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


def first_embedding(siglip: Siglip) -> float:
    """Returns the seconds to embed one picture and wait for it: with a model just loaded, mostly to compile."""
    start = time.perf_counter()
    siglip.encode_image(PIL.Image.new("RGB", PICTURE))
    return time.perf_counter() - start


def preparation(siglip: Siglip, seconds: float) -> Speed:
    """Times decoding and resizing of a JPEG of `PICTURE` pixels, in threads as `encode_image` does it."""
    file = jpeg()

    def prepare() -> None:
        for future in in_threads(siglip.pixels, [file] * PICTURES, workers=siglip.choices.threads, ahead=PICTURES):
            future.result()

    return _speed("pictures", PICTURES, repeated(prepare, seconds), None)


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
    """Returns a picture of edges, gradients and grain as a file of as many bytes as a camera's."""
    rng = np.random.default_rng(0)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(PICTURE)
    grain = rng.normal(scale=8, size=(PICTURE[1], PICTURE[0], 3))
    file = io.BytesIO()
    PIL.Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def _speed(what: str, size: int, taken: list[float], flops: int | None) -> Speed:
    low, middle, high = np.quantile(taken, (0.25, 0.5, 0.75)).tolist()
    rate = size / middle
    return Speed(what, size, len(taken), middle, low, high, rate, flops and rate * flops / 1e9)
