"""A training step of the base model, forward and backward, beside `transformers` on torch: seconds and peak memory.

    python benchmarks/training_step.py [--batch 32] [--dtype float32] [--repeat 3] [--sides torch ours ...]

Each side is a process of its own with random weights; the sides take steps in turns. Needs the extra `test` (torch).
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

HUGE = "scan, dots, huge pages"  # as `siglip-jax train` starts itself
# What to compute again, and whether the layers are stacked.
OURS = {
    "ours": (None, False),
    "scan": (None, True),
    "scan, dots": ("dots", True),
    "scan, dots_with_no_batch_dims": ("dots_with_no_batch_dims", True),
    "scan, full": ("full", True),
    HUGE: ("dots", True),
}
SIDES = ("torch", *OURS)
LENGTH = 64  # tokens of a text


def torch_step(batch, dtype):
    """Returns a function that does an eager step with torch."""
    import torch
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig()).to(getattr(torch, dtype))
    pixels = torch.randn(batch, 3, 224, 224).to(getattr(torch, dtype))
    ids = torch.randint(2, 32000, (batch, LENGTH))

    def step():
        model.zero_grad()
        model(input_ids=ids, pixel_values=pixels, return_loss=True).loss.backward()

    return step


def our_step(batch, dtype, remat, scan_layers):
    """Returns a function that does a compiled step with siglip_jax."""
    import jax
    import jax.numpy as jnp

    from siglip_jax import SiglipConfig, SiglipModel
    from siglip_jax.losses.sigmoid import sigmoid_loss

    model = SiglipModel(SiglipConfig(), dtype=getattr(jnp, dtype), remat=remat, scan_layers=scan_layers)
    pixels = jax.random.normal(jax.random.key(0), (batch, 224, 224, 3))
    ids = jax.random.randint(jax.random.key(1), (batch, LENGTH), 2, 32000)
    params = jax.jit(model.init)(jax.random.key(2), ids[:1], pixels[:1])["params"]

    def loss(params):
        out = model.apply({"params": params}, ids, pixels)
        scalars = params["logit_scale"], params["logit_bias"]
        return sigmoid_loss(out.image_embeds, out.text_embeds, *scalars, block_size="auto")

    gradient = jax.jit(jax.grad(loss))
    return lambda: jax.block_until_ready(gradient(params))


def work(side, batch, dtype):
    """Does a step for every input line, and prints its seconds and the peak memory in bytes."""
    step = torch_step(batch, dtype) if side == "torch" else our_step(batch, dtype, *OURS[side])
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)


def main():
    """Runs the benchmark and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="image-text pairs in a step")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="compute dtype")
    parser.add_argument("--repeat", type=int, default=3, help="measured steps, after one to warm up")
    parser.add_argument("--sides", choices=SIDES, nargs="+", default=SIDES, help="what to compare with torch")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work(options.side, options.batch, options.dtype)
        return
    processes, sides = {}, tuple(dict.fromkeys(("torch", *options.sides)))
    for side in sides:
        words = [sys.executable, __file__, "--side", side, "--batch", str(options.batch), "--dtype", options.dtype]
        environment = os.environ | ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if side == HUGE else {})
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes[side] = subprocess.Popen(words, env=environment, **pipes)
    seconds, memory = {side: [] for side in sides}, {}
    for turn in range(options.repeat + 1):
        for side, process in processes.items():
            print(file=process.stdin, flush=True)
            took, peak = process.stdout.readline().split()
            memory[side] = int(peak)
            if turn:
                seconds[side].append(float(took))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    base = statistics.median(seconds["torch"])
    print(f"base model, batch {options.batch}, {options.dtype}, forward and backward, medians of {options.repeat}")
    for side in sides:
        median = statistics.median(seconds[side])
        print(
            f"{side:30s} {median:7.2f} s  {base / median:5.2f} x as fast as torch"
            f"  {memory[side] / 2**30:6.2f} GiB peak  {memory[side] / memory['torch']:5.2f} of torch's"
        )


if __name__ == "__main__":
    main()
