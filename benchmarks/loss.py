"""The sigmoid loss and its four gradients: time, peak memory and TFLOP/s, beside the formula in torch.

    python benchmarks/loss.py [--batches 1024 4096 …] [--width 768] [--repeats 5] [--devices 8] [--json]
    python benchmarks/loss.py --compiled 32768 [--width 768] [--devices 8]

Rows: ours dense, ours blocked, ours as a ring over devices (virtual ones on a CPU, which share its cores), the formula
of big_vision in plain JAX, the formula of the reference in torch and, on a GPU with the package installed,
`siglip_kernel`. Every row is a process of its own, so its peak memory is its own; the rows of one batch take turns, and
results are medians. Peak memory excludes the embeddings: resident memory on a CPU, that of the allocator on a GPU.
TFLOP/s count the three matrix products, 6 B² E, that every form needs. A row that would hold the whole matrix is
skipped if that exceeds a quarter of the memory. Rows that need a GPU are "not measured" without one.

The second command only compiles: it prints the temporaries on each of the devices, over which the batch is sharded.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

SIDES = Path(__file__).with_name("loss_sides.py")
ROWS = {  # label: form, side, number of copies of the whole matrix
    "ours, dense": ("dense", "jax", 4),
    "ours, blocked": ("blocked", "jax", 0),
    "ours, ring": ("ring", "jax", 0),
    "formula in jax": ("formula", "jax", 4),
    "formula in torch": ("formula", "torch", 5),
    "siglip_kernel": ("siglip_kernel", "torch", 0),
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
    parser.add_argument("--compiled", type=int, metavar="B", help="only compile for a sharded batch of B, on CPUs")
    arguments = parser.parse_args()
    if arguments.compiled:
        print_compiled(arguments.compiled, arguments)
        return
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


def print_compiled(batch: int, arguments: argparse.Namespace) -> None:
    """Prints what the ring and the formula of big_vision take on each device, as compiled for CPUs."""
    print(
        f"{arguments.devices} CPU devices, B = {batch}, E = {arguments.width}, loss and gradients, as XLA compiles them"
    )
    print(f"{'type':<9}  {'what':<18}{'MiB of temporaries on each device':>34}{'all-gathers':>13}")
    for dtype in arguments.dtypes:
        for what in ("ours, ring", "formula in jax"):
            words = ("compiled", ROWS[what][0], dtype, batch, arguments.width, arguments.devices)
            command = [sys.executable, str(SIDES), *map(str, words)]
            environment = os.environ | {"JAX_PLATFORMS": "cpu"}
            ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            size, gathers = map(int, ran.stdout.split())
            print(f"{dtype:<9}  {what:<18}{size / 2**20:>34.0f}{gathers:>13}")


def measure(batch: int, dtype: str, arguments: argparse.Namespace, card: str | None, too_long: set[str]) -> list[dict]:
    """Returns the rows of one batch, whose processes take turns."""
    rows, running = [], {}
    for what, (name, side, matrices) in ROWS.items():
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
            command = [sys.executable, str(SIDES), side, name, dtype, *map(str, (batch, arguments.width, devices))]
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
