"""Quantization: bytes, peak memory of loading, time per batch, and the accuracy of the bundled model.

    python benchmarks/quantization.py [--variant siglip-base-patch16-224] [--repeats 5] [--data DATA] [--json]

Bytes, memory and time are those of a random float32 checkpoint with the shapes of the variant. Each load is a process
of its own, and batches of 8 images take turns; times are medians. Peak memory is the increase by loading. Agreement is
that of the bundled model on the 64 example images and labels and, with --data (the output of
`research.pictograms.build`), on the 1,599 held-out drawings.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import siglip_jax
from siglip_jax.assets import EXAMPLES
from siglip_jax.checkpoints.keymap import key_table
from siglip_jax.inference.quantize import compare
from siglip_jax.models import SiglipModel, place_params
from siglip_jax.params import unflatten

SCHEMES = ("int8", "int4", "nf4", "fp8")
BATCH = 8
# The record of the kernel; `ru_maxrss` would start at the size of the parent process.
LOAD = """
import sys, time
from pathlib import Path
import jax
from siglip_jax.checkpoints import read_checkpoint
from siglip_jax.models import SiglipModel, place_params
from siglip_jax.params import flatten
from siglip_jax.quantization.schemes import qwix
def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
scheme = sys.argv[2]
if scheme != "float32":
    qwix()
jax.devices()
base, start = peak(), time.perf_counter()
if scheme == "float32":
    _, params = SiglipModel.from_pretrained(sys.argv[1])
else:
    params = place_params(read_checkpoint(Path(sys.argv[1])).params, "float32", quantization=scheme)
jax.block_until_ready(params)
print(time.perf_counter() - start, peak() - base, sum(x.nbytes for x in flatten(params).values()))
"""


def write(directory: Path, variant: str) -> None:
    """Writes random weights with the shapes of a variant."""
    config = siglip_jax.SiglipConfig.from_variant(variant)
    random = np.random.default_rng(0)
    params = {row.path: random.standard_normal(row.shape, np.float32) for row in key_table(config, "SiglipModel")}
    params = {path: x / np.float32(len(x) ** 0.5) if path.endswith("kernel") else x for path, x in params.items()}
    SiglipModel(config).save_pretrained(directory, unflatten(params))


def loading(directory: Path) -> dict[str, dict[str, float]]:
    """Returns seconds, peak bytes and final bytes of loading in float32 and in each scheme."""
    found = {}
    for scheme in ("float32", *SCHEMES):
        command = [sys.executable, "-c", LOAD, str(directory), scheme]
        seconds, peak, size = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        found[scheme] = {"load_seconds": float(seconds), "peak_bytes": int(peak), "bytes": int(size)}
    return found


def timing(directory: Path, repeats: int) -> dict[str, float]:
    """Returns the median milliseconds of a batch of images in each number format, in turns."""
    forms: dict[str, Any] = {}
    size = siglip_jax.SiglipConfig.from_pretrained(directory).vision_config.image_size
    for name in ("float32", "bfloat16", *SCHEMES):
        dtype = jnp.dtype("bfloat16" if name == "bfloat16" else "float32")
        if name in SCHEMES:
            checkpoint = siglip_jax.read_checkpoint(directory)
            model = SiglipModel(checkpoint.config, dtype=dtype)
            params = place_params(checkpoint.params, dtype, quantization=name)
        else:
            model, params = SiglipModel.from_pretrained(directory, dtype=dtype, param_dtype=dtype)
        encode = functools.partial(model.apply, method="get_image_features")
        forms[name] = jax.jit(lambda p, x, encode=encode: encode({"params": p}, x)), params
    pixels = jnp.asarray(np.random.default_rng(0).standard_normal((BATCH, size, size, 3), np.float32))
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats + 1):
        for name, (encode, params) in forms.items():
            start = time.perf_counter()
            encode(params, pixels).block_until_ready()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(each[1:]) for name, each in times.items()}  # the first batch compiles


def top1(siglip: siglip_jax.inference.Siglip) -> float:
    """Returns the percentage of the example images whose own label ranks first."""
    labels = (EXAMPLES / "labels.txt").read_text(encoding="utf-8").splitlines()
    cosines = siglip.encode_image([EXAMPLES / f"{label}.png" for label in labels]) @ siglip.encode_text(labels).T
    return 100 * float((cosines.argmax(axis=1) == np.arange(len(labels))).mean())


def agreement(data: Path | None) -> dict[str, dict[str, Any]]:
    """Returns cosines to the float bundled model, and zero-shot accuracy, by scheme."""
    floats = siglip_jax.load()
    found: dict[str, dict[str, Any]] = {}
    for name in ("float32", *SCHEMES):
        siglip = siglip_jax.load(quantization=None if name == "float32" else name)
        found[name] = {"cosine": compare(floats, siglip)["cosine"], "examples_top1": top1(siglip)}
        if data is not None:
            from research.pictograms.dataset import load_split
            from research.pictograms.scores import scores_of

            scores = scores_of(load_split(data, "fluent3d"), siglip.encode_image, siglip.encode_text)
            found[name]["held_out_top1"] = scores["top1"]
    return found


def main() -> None:
    """Runs the benchmark and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="siglip-base-patch16-224")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, help="directory written by research.pictograms.build")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    found = {"jax": jax.__version__, "agreement": agreement(options.data)}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        write(directory, options.variant)
        found |= {"loading": loading(directory), "milliseconds": timing(directory, options.repeats)}
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"jax {jax.__version__}, {options.variant}, random weights; batches of {BATCH} images")
    print(f"{'':10}{'MB':>7}{'peak MB':>9}{'load s':>8}{'ms':>8}{'x bfloat16':>12}")
    ms = found["milliseconds"]
    for name in ms:
        load = found["loading"].get(name)
        cells = "".join(["-".rjust(7), "-".rjust(9), "-".rjust(8)])
        if load:
            cells = f"{load['bytes'] / 1e6:7.0f}{load['peak_bytes'] / 1e6:9.0f}{load['load_seconds']:8.1f}"
        print(f"{name:10}{cells}{ms[name]:8.0f}{ms['bfloat16'] / ms[name]:12.2f}")
    print("\nbundled model; cosines to float32 over 64 images and 64 labels: least, mean; top-1 in %")
    for name, a in found["agreement"].items():
        cosines = "  ".join(f"{c['least']:.5f} {c['mean']:.5f}" for c in a["cosine"].values())
        held_out = f"  held-out drawings {a['held_out_top1']:.2f}" if options.data else ""
        print(f"{name:10}{cosines}  examples {a['examples_top1']:.1f}{held_out}")


if __name__ == "__main__":
    main()
