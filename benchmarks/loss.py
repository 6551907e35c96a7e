"""The sigmoid loss and its four gradients: time, peak memory and TFLOP/s, beside the formula in torch.

    python benchmarks/loss.py [--batches 1024 4096 …] [--width 768] [--repeats 5] [--devices 8] [--json]

Rows: ours dense, ours blocked, ours as a ring over devices (virtual ones on a CPU, which share its cores), the formula
of big_vision in plain JAX, the formula of the reference in torch and, on a GPU with the package installed,
`siglip_kernel`. Every row is a process of its own, so its peak memory is its own; the rows of one batch take turns, and
results are medians. Peak memory excludes the embeddings: resident memory on a CPU, that of the allocator on a GPU.
TFLOP/s count the three matrix products, 6 B² E, that every form needs. A row that would hold the whole matrix is
skipped if that exceeds a quarter of the memory. Rows that need a GPU are "not measured" without one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

COMMON = """
import json, sys, time
import numpy as np
name, dtype = sys.argv[1:3]
batch, width, devices = map(int, sys.argv[3:6])
random = np.random.default_rng(0)
def unit():
    x = random.standard_normal((batch, width), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)
images, texts = unit(), unit()
def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
def measure(step, peak_of_device):
    base = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # resets the peak
    step()
    peak = peak_of_device() if peak_of_device else status("VmHWM") - base
    for line in sys.stdin:  # one line: one timing
        start = time.perf_counter()
        rounds = 0
        while not rounds or time.perf_counter() - start < 0.2:
            step()
            rounds += 1
        print(json.dumps([(time.perf_counter() - start) / rounds, peak]), flush=True)
"""
OURS = (
    COMMON
    + """
import jax, jax.numpy as jnp
if devices > 1:
    jax.config.update("jax_num_cpu_devices", devices)
import siglip_jax
from jax.sharding import NamedSharding, PartitionSpec
def formula(images, texts, scale, bias):
    logits = jnp.exp(scale).astype(images.dtype) * (images @ texts.T) + bias.astype(images.dtype)
    signs = 2 * jnp.eye(batch, dtype=logits.dtype) - 1
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(signs * logits), axis=-1))
given = [jnp.asarray(images, dtype), jnp.asarray(texts, dtype), jnp.float32(np.log(10)), jnp.float32(-10)]
options = {"dense": {}, "blocked": {"block_size": "auto"}, "formula": None}
if name == "ring":
    mesh = siglip_jax.make_mesh(data=devices)
    options["ring"] = {"block_size": "auto", "mesh": mesh}
    given[:2] = jax.device_put(given[:2], NamedSharding(mesh, PartitionSpec("data")))
del images, texts
chosen = options[name]
loss = formula if chosen is None else lambda *given: siglip_jax.sigmoid_loss(*given, **chosen)
step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))
compiled = step.lower(*given).compile()
jax.block_until_ready(given)
on_gpu = jax.default_backend() == "gpu"
before = jax.local_devices()[0].memory_stats()["bytes_in_use"] if on_gpu else 0
def peak_of_device():
    return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] - before
measure(lambda: jax.block_until_ready(compiled(*given)), peak_of_device if on_gpu else None)
"""
)
TORCH = (
    COMMON
    + """
import torch
device, kind = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, dtype)
given = [torch.tensor(x, dtype=kind, device=device, requires_grad=True) for x in (images, texts, np.log(10), -10.0)]
del images, texts
def formula():
    image, text, scale, bias = given
    logits = image @ text.t() * scale.exp() + bias
    signs = 2 * torch.eye(batch, device=device, dtype=kind) - torch.ones_like(logits)
    return -torch.nn.functional.logsigmoid(signs * logits).sum(-1).mean()
def kernel():
    import siglip_kernel
    return siglip_kernel.fused_siglip_loss(*given)
def step():
    loss = (kernel if name == "siglip_kernel" else formula)()
    loss.backward()
    for x in given:
        x.grad = None
    if device == "cuda":
        torch.cuda.synchronize()
def peak_of_device():
    return torch.cuda.max_memory_allocated() - 2 * batch * width * given[0].element_size()
measure(step, peak_of_device if device == "cuda" else None)
"""
)
ROWS = {  # label: name, program, number of copies of the whole matrix
    "ours, dense": ("dense", OURS, 4),
    "ours, blocked": ("blocked", OURS, 0),
    "ours, ring": ("ring", OURS, 0),
    "formula in jax": ("formula", OURS, 4),
    "formula in torch": ("formula", TORCH, 5),
    "siglip_kernel": ("siglip_kernel", TORCH, 0),
}


def memory() -> int:
    """Returns the memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gpu() -> str | None:
    """Returns the name of the first GPU that JAX sees."""
    program = "import jax; d = jax.devices()[0]; print(d.device_kind if d.platform == 'gpu' else '')"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return ran.stdout.strip() or None


def main() -> None:
    """Runs the benchmark and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--batches", type=int, nargs="+", help="default: powers of two from 1024 to 32768, with a GPU to 1048576"
    )
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--devices", type=int, default=8, help="devices of the ring, on a CPU")
    parser.add_argument("--longest", type=float, default=120, help="seconds of a step above which a row stops growing")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    card = gpu()
    batches = arguments.batches or [2**n for n in range(10, 21 if card else 16)]
    table = []
    for dtype in arguments.dtypes:
        for batch in batches:
            slow = {row["what"] for row in table if row["dtype"] == dtype and row.get("too_long")}
            table += measure(batch, dtype, arguments, card, slow)
    if arguments.json:
        print(json.dumps({"device": card or "CPU", "rows": table}, indent=2))
        return
    print(f"{card or 'CPU; GPU rows were not measured'}; embeddings of width {arguments.width}")
    titles = f"{'ms':>11}{'TFLOP/s':>9}{'peak MiB':>10}{'times torch':>13}{'of its memory':>15}"
    print(f"{'type':<9}{'B':>8}  {'what':<18}{titles}")
    for row in table:
        head = f"{row['dtype']:<9}{row['batch']:>8}  {row['what']:<18}"
        if "why" in row:
            print(f"{head}  {row['why']}")
            continue
        ratios = "".join(f"{x:>{n}.2f}" if x else f"{'-':>{n}}" for x, n in ((row["speed"], 13), (row["memory"], 15)))
        print(f"{head}{row['ms']:>11.1f}{row['tflops']:>9.3f}{row['peak_mib']:>10.0f}{ratios}")


def measure(batch: int, dtype: str, arguments: argparse.Namespace, card: str | None, too_long: set[str]) -> list[dict]:
    """Returns the rows of one batch, whose processes take turns."""
    rows, running = [], {}
    for what, (name, program, matrices) in ROWS.items():
        row = {"dtype": dtype, "batch": batch, "what": what}
        rows.append(row)
        devices = arguments.devices if name == "ring" and not card else 1
        if name == "siglip_kernel" and not card:
            row["why"] = "not measured: no GPU"
        elif what in too_long:
            row["why"] = "not measured: the batch before took too long"
        elif not card and matrices * batch**2 * 4 > memory() / 4:
            row["why"] = f"not measured: the matrix would take {matrices * batch**2 * 4 / 2**30:.0f} GiB"
        else:
            command = [sys.executable, "-c", program, name, dtype, *map(str, (batch, arguments.width, devices))]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            running[what] = (row, process, [])
    for _ in range(arguments.repeats):
        for row, process, found in running.values():
            if "why" in row:
                continue
            try:
                process.stdin.write("go\n")
                process.stdin.flush()
                found.append(json.loads(process.stdout.readline()))
            except (BrokenPipeError, json.JSONDecodeError):
                last = (process.stderr.read().strip().splitlines() or ["it ended"])[-1]
                row["why"] = f"not measured: {last[:90]}"
    for row, process, found in running.values():
        process.stdin.close()
        process.wait()
        if "why" not in row:
            seconds, peak = statistics.median(x[0] for x in found), found[0][1]
            row |= {"ms": 1e3 * seconds, "tflops": 6 * batch**2 * arguments.width / seconds / 1e12}
            row |= {"peak_mib": peak / 2**20, "too_long": seconds > arguments.longest / 4}
    torch = next((row for row in rows if row["what"] == "formula in torch" and "ms" in row), None)
    for row in rows:
        if "ms" in row:
            row["speed"] = torch and torch["ms"] / row["ms"]
            row["memory"] = torch and row["peak_mib"] / torch["peak_mib"]
    return rows


if __name__ == "__main__":
    main()
