"""Image processing against `transformers.SiglipImageProcessorPil`: images per second, and whether the values agree.

    python benchmarks/image_processing.py [--height 480] [--width 640] [--images 32] [--repeats 7] [--json]

All sides turn the same decoded RGB images into arrays of 224 x 224, in turns, after one round to warm up. Results are
medians; a ratio above 1 means that this package is faster. `SiglipImageProcessor` runs on the default device, which is
printed; on a CPU its matrix products are slower than Pillow, on an accelerator they are not. Its time includes the
transfer to the device, and back if the result is numpy. Needs no torch; if torchvision is installed, the other class of
the reference is measured too.
"""

import argparse
import json
import logging
import statistics
import time
from typing import Any

import jax
import numpy as np
import PIL.Image
import transformers

from siglip_jax.processing import SiglipImageProcessor, SiglipImageProcessorPil


def synthetic_images(count: int, height: int, width: int) -> list[PIL.Image.Image]:
    """Returns smooth images with added noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([np.sin(x / (30 + 7 * i)) * np.cos(y / 41) for i in range(3)], -1) * 100 + 127
    return [
        PIL.Image.fromarray(np.clip(base + rng.normal(scale=12, size=base.shape), 0, 255).astype(np.uint8))
        for _ in range(count)
    ]


def sides() -> dict[str, Any]:
    """Returns the functions to measure, by name; each takes a list of images."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    reference = transformers.SiglipImageProcessorPil()
    pil, jit = SiglipImageProcessorPil(), SiglipImageProcessor()
    out = {
        "transformers, Pillow": lambda images: reference(images, return_tensors="np")["pixel_values"],
        "siglip_jax, Pillow": lambda images: pil(images).pixel_values,
        "siglip_jax, jit, to numpy": lambda images: jit(images).pixel_values,
        "siglip_jax, jit, on the device": lambda images: jax.block_until_ready(
            jit(images, return_tensors="jax").pixel_values
        ),
    }
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return out
    fast = transformers.SiglipImageProcessor()
    return out | {"transformers, torchvision": lambda images: fast(images, return_tensors="pt")["pixel_values"].numpy()}


def measure(count: int, height: int, width: int, repeats: int) -> list[dict[str, object]]:
    """Returns a row for each side; ratios and differences are relative to the Pillow class of the reference."""
    images = synthetic_images(count, height, width)
    runs = sides()
    results = {name: np.asarray(run(images)) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run(images)
            times[name].append(time.perf_counter() - start)
    rates = {name: count / statistics.median(t) for name, t in times.items()}
    base = next(iter(runs))
    rows = []
    for name, rate in rates.items():
        values = results[name] if name.startswith("transformers") else np.moveaxis(results[name], -1, 1)
        differing = int((values != results[base]).sum())
        rows.append(
            {"what": name, "images_per_second": round(rate, 1), "ratio": round(rate / rates[base], 2)}
            | {"differing_values": differing, "device": jax.devices()[0].device_kind}
        )
    return rows


def main() -> None:
    """Runs the benchmark and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options.images, options.height, options.width, options.repeats)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{options.width} x {options.height}, device: {rows[0]['device']}")
    print(f"{'':<32} {'images/s':>9} {'ratio':>6} {'differing values':>17}")
    for row in rows:
        print("{what:<32} {images_per_second:>9} {ratio:>6} {differing_values:>17}".format(**row))


if __name__ == "__main__":
    main()
