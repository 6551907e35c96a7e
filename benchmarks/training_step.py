"""A training step of the base model, forward and backward, beside `transformers` on torch: seconds and peak memory.

    python benchmarks/training_step.py [--batch 32] [--dtype float32] [--repeat 3] [--sides ours scan ...]

Each side is a process of its own with random weights, which takes steps in turns with torch. Needs the extra `test`
(torch).
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

# What to compute again, whether the layers are stacked, and whether freed memory is kept, as `siglip-jax train` does.
OURS = {
    "ours": (None, False, True),
    "scan": (None, True, True),
    "scan, dots": ("dots", True, True),
    "scan, dots_with_no_batch_dims": ("dots_with_no_batch_dims", True, True),
    "scan, attention_and_mlp_input": ("attention_and_mlp_input", True, True),
    "scan, full": ("full", True, True),
    "ours, memory given back": (None, False, False),
    "scan, dots_with_no_batch_dims, memory given back": ("dots_with_no_batch_dims", True, False),
}
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


def our_step(batch, dtype, remat, scan_layers, keep_memory):
    """Returns a function that does a compiled step with siglip_jax."""
    import jax
    import jax.numpy as jnp

    from siglip_jax import SiglipConfig, SiglipModel
    from siglip_jax.losses.sigmoid import sigmoid_loss
    from siglip_jax.training import keep_freed_memory

    if keep_memory:
        keep_freed_memory()
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
    parser.add_argument("--sides", choices=OURS, nargs="+", default=OURS, help="what to compare with torch")
    parser.add_argument("--side", choices=("torch", *OURS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work(options.side, options.batch, options.dtype)
        return
    print(f"base model, batch {options.batch}, {options.dtype}, forward and backward, medians of {options.repeat}")
    torch = start("torch", options)
    for side in dict.fromkeys(options.sides):
        ours = start(side, options)
        steps = [(take_step(torch), take_step(ours)) for _ in range(options.repeat + 1)]
        stop(ours)
        (base, base_peak), (seconds, peak) = (summary(rows) for rows in zip(*steps, strict=True))
        print(
            f"{side:48s} {seconds:6.2f} s {base / seconds:5.2f} x as fast as torch, {base:.2f} s"
            f" {peak / 2**30:6.2f} GiB peak {peak / base_peak:5.2f} of torch's, {base_peak / 2**30:.2f}",
            flush=True,
        )
    stop(torch)


def start(side, options):
    """Starts the process of a side."""
    words = [sys.executable, __file__, "--side", side, "--batch", str(options.batch), "--dtype", options.dtype]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def take_step(process):
    """Returns the seconds of a step of a process, and its peak memory in bytes until then."""
    print(file=process.stdin, flush=True)
    seconds, peak = process.stdout.readline().split()
    return float(seconds), int(peak)


def stop(process):
    """Ends a process."""
    process.stdin.close()
    process.wait()


def summary(steps):
    """Returns the median of the seconds without the first step, which warms up, and the peak memory."""
    return statistics.median(seconds for seconds, _ in steps[1:]), max(peak for _, peak in steps)


if __name__ == "__main__":
    main()
