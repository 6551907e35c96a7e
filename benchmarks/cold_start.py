"""Time from a new process to the first embedding of an image (import, load, compile, embed), and peak memory.

    python benchmarks/cold_start.py [--python PATH] [--repeats 5] [--json]

Both sides read the same random checkpoint with the sizes of siglip-base-patch16-224 but for its vocabulary of 2,048
pieces, both towers in float32, in turns, each in a process of its own; results are medians. siglip_jax finds its
compiled code in a cache that an earlier run filled. Needs torch and transformers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from inference_files import write_model

COMMON = """
import sys, time
start = time.perf_counter()
import PIL.Image
image = PIL.Image.new("RGB", (640, 480))
{}
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.perf_counter() - start, 1024 * peak)
"""
OURS = """
import siglip_jax
siglip_jax.load(sys.argv[1]).encode_image(image)
"""
THEIRS = """
import torch
from transformers import SiglipImageProcessorPil, SiglipModel
model = SiglipModel.from_pretrained(sys.argv[1]).eval()
with torch.inference_mode():
    model.get_image_features(**SiglipImageProcessorPil.from_pretrained(sys.argv[1])(image, return_tensors="pt"))
"""


def main() -> None:
    """Prints both sides and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter for siglip_jax")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        model = Path(work) / "model"
        model.mkdir()
        write_model(model, "siglip-base-patch16-224", rows=1, images=1)
        size = (model / "model.safetensors").stat().st_size
        environment = os.environ | {"XDG_CACHE_HOME": work}

        def run(python: str, program: str) -> list[float]:
            command = [python, "-c", COMMON.format(program), str(model)]
            ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            return [float(x) for x in ran.stdout.split()[-2:]]

        run(arguments.python, OURS)
        turns = [(run(arguments.python, OURS), run(sys.executable, THEIRS)) for _ in range(arguments.repeats)]
    facts = {"bytes": size}
    for name, runs in zip(("siglip_jax", "transformers"), zip(*turns, strict=True), strict=True):
        seconds, peak = (statistics.median(values) for values in zip(*runs, strict=True))
        facts[name] = {"seconds": seconds, "peak_bytes": peak, "peak_over_file": peak / size}
    facts["time_ratio"] = facts["siglip_jax"]["seconds"] / facts["transformers"]["seconds"]
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    for name in ("siglip_jax", "transformers"):
        row = facts[name]
        print(f"{name:<13} {row['seconds']:6.2f} s   peak {row['peak_over_file']:.2f} x the file of weights")
    print(f"time, ours / transformers: {facts['time_ratio']:.2f}")


if __name__ == "__main__":
    main()
