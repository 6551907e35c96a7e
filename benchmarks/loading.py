"""Loading of a full-size checkpoint of so400m-patch14-384 (3.5 GB in float32, random weights): time and peak memory.

Compares with `from_pretrained` of `transformers`, with every element read once, because it only maps the file, whereas
siglip_jax makes new arrays, transposed for JAX. The third line is the cost of memory on this machine: as many fresh
bytes, written once by two threads. Each side is a process of its own, in turns; results are medians. The weights are
read once beforehand, so that all loads find them in the page cache.

    python benchmarks/loading.py [--variant siglip-so400m-patch14-384] [--repeats 3] [--json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

# The record of the kernel; `ru_maxrss` would start at the size of the parent process.
PEAK = """
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
"""
OURS = """
import sys, time
import jax, siglip_jax
jax.devices()
base = peak()
start = time.perf_counter()
model, params = siglip_jax.SiglipModel.from_pretrained(sys.argv[1])
jax.block_until_ready(params)
print(time.perf_counter() - start, base, peak())
"""
THEIRS = """
import sys, time
import torch
from transformers import SiglipModel
base = peak()
start = time.perf_counter()
model = SiglipModel.from_pretrained(sys.argv[1]).to("cpu")
touched = sum(float(p.detach().sum()) for p in model.parameters())
print(time.perf_counter() - start, base, peak())
"""
FRESH = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
base = peak()
start = time.perf_counter()
blocks = [np.empty(2**25, np.uint8) for _ in range(int(sys.argv[2]) // 2**25)]
with ThreadPoolExecutor(2) as pool:
    list(pool.map(lambda block: block.fill(1), blocks))
print(time.perf_counter() - start, base, peak())
"""


def write(directory: Path, variant: str) -> int:
    """Writes random weights and returns their size in bytes."""
    from siglip_jax import Checkpoint, SiglipConfig, write_checkpoint
    from siglip_jax.checkpoints.keymap import architecture_of, key_table
    from siglip_jax.params import unflatten

    config = SiglipConfig.from_variant(variant)
    architecture, random = architecture_of(config), np.random.default_rng(0)
    rows = key_table(config, architecture)
    params = {row.path: random.standard_normal(row.shape, np.float32) for row in rows}
    write_checkpoint(directory, Checkpoint(config, unflatten(params), "huggingface", architecture))
    return sum(x.nbytes for x in params.values())


def main() -> None:
    """Runs the benchmark and prints both sides and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="siglip-so400m-patch14-384")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        size = write(Path(work), arguments.variant)
        (Path(work) / "model.safetensors").read_bytes()
        measured = {"ours": [], "transformers": [], "fresh memory": []}
        for _ in range(arguments.repeats):
            for name, program in (("ours", OURS), ("transformers", THEIRS), ("fresh memory", FRESH)):
                ran = subprocess.run(
                    [sys.executable, "-c", PEAK + program, work, str(size)], capture_output=True, text=True, check=True
                )
                measured[name].append([float(x) for x in ran.stdout.split()[-3:]])
    facts = {"variant": arguments.variant, "bytes": size}
    for name, runs in measured.items():
        seconds = statistics.median(run[0] for run in runs)
        peak = statistics.median(1024 * (run[2] - run[1]) / size for run in runs)
        facts[name] = {"seconds": seconds, "peak_over_size": peak}
    facts["time_ratio"] = facts["ours"]["seconds"] / facts["transformers"]["seconds"]
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    print(f"{arguments.variant}: {size / 1e9:.2f} GB in float32")
    for name in measured:
        print(f"{name:<13} {facts[name]['seconds']:6.2f} s   peak {facts[name]['peak_over_size']:.2f} x its size")
    print(f"time, ours / transformers: {facts['time_ratio']:.2f}")


if __name__ == "__main__":
    main()
