"""Inference beside its peers on this machine: embeddings per second, load time, memory, JPEG files.

    python benchmarks/inference.py [--size base|tiny] [--dtypes float32 int8] [--batches 1 8] [--end-to-end] [--json]
    python benchmarks/inference.py --variant siglip-so400m-patch14-384 --plot ratios.png

Peers: `transformers` on torch (eager, sdpa, torch.compile), ONNX Runtime, OpenVINO; on a GPU those of them that use it.
A peer that is not installed, or lacks a dtype, is "not measured", with the reason. All peers have the same random
weights and the same inputs. A tower is timed from arrays in host memory, or GPU memory, to embeddings in host memory; a
peer whose embeddings differ is not timed. Each peer is a process with its own threads on the same cores. Peers take
turns, one repetition each, while the others are stopped (SIGSTOP). A repetition during which other processes used more
than 0.12 cores counts only if there is no better one. Results are medians; a ratio above 1 means that this package is
faster.

"of matmul" is the rate of a peer as a share of the rate of one large matrix product of the same dtype in jax.

Load time is from files to a callable model, after importing the libraries; "first" adds the first embedding, and so
compilation. --end-to-end embeds JPEG files with `encode_image`, beside torch with decoding in threads.
benchmarks/cold_start.py times whole processes. Linux only. Peers need the extra `test`, onnx, onnxscript, onnxruntime
and openvino.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from inference_peers import GPU, PEERS, TOWERS
from inference_report import plot, print_cell, print_loads

VARIANTS = {"base": "siglip-base-patch16-224", "tiny": "tiny"}
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.3}  # norm of the difference of two unit vectors
FOREIGN = 0.12  # cores that other processes may use
BURST = 0.5  # shortest repetition in seconds
LONG = 10.0  # seconds per batch above which it is not repeated
HOPELESS = 40.0  # expected seconds per batch above which it is not tried
TICKS = os.sysconf("SC_CLK_TCK")


class Peer:
    """A process that runs only while it answers a request."""

    def __init__(self, name: str, dtype: str, options: argparse.Namespace) -> None:
        pythons = {"siglip_jax": options.python, "siglip_jax other": options.other}
        python = pythons.get(name, sys.executable)
        command = [python, str(Path(__file__).with_name("inference_peers.py")), name, str(options.folder), dtype]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self.log = options.folder / f"{name} {dtype}.log"
        with self.log.open("w") as log:
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
            self.process = subprocess.Popen([*command, str(options.threads)], env=environment, **pipes)
        self.memory: dict[str, int] = {}  # peak, in bytes
        self.facts = self.answer()

    def answer(self) -> dict[str, Any]:
        """Waits for the next answer and stops the process."""
        line = self.process.stdout.readline()
        if not line:
            last = self.log.read_text().strip().rpartition("\n")[2]
            return {"why": f"its process ended with status {self.process.wait()}: {last[:200]}"}
        self.process.send_signal(signal.SIGSTOP)
        answer = json.loads(line)
        self.memory = answer.pop("memory")
        return answer

    def ask(self, **order: Any) -> dict[str, Any]:
        """Sends a request and returns the answer, with the cores that other processes used meanwhile."""
        if self.process.poll() is not None:
            return {"why": "its process ended before"}
        start, busy, own = time.perf_counter(), machine_ticks(), self.ticks()
        self.process.send_signal(signal.SIGCONT)
        print(json.dumps(order), file=self.process.stdin, flush=True)
        answer = self.answer()
        seconds = time.perf_counter() - start
        if "seconds" in answer:
            answer["foreign"] = (machine_ticks() - busy - (self.ticks() - own)) / TICKS / seconds
        return answer

    def ticks(self) -> int:
        """Returns the processor time of the process and of this one, which waits for it, in ticks."""
        ticks = 0
        for pid in (self.process.pid, os.getpid()):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks

    def close(self) -> None:
        """Ends the process."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def machine_ticks() -> int:
    """Returns the processor time of all processes, and of the host of a virtual machine, in ticks."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return user + nice + system + irq + softirq + steal


class Cell(NamedTuple):
    """One measurement of every peer: `batch` rows in one call."""

    dtype: str
    tower: str  # "files": from JPEG files to embeddings
    batch: int


def measure(dtype: str, options: argparse.Namespace, reference: dict[Any, np.ndarray]) -> tuple[dict, list[dict]]:
    """Returns the load times of each peer, and the rows of all cells of this dtype."""
    peers: dict[str, Peer] = {}
    loads, rows, pace = {}, [], {}
    cells = [Cell(dtype, tower, batch) for tower in TOWERS for batch in options.batches]
    cells += [Cell(dtype, "files", options.images)] * options.end_to_end
    try:
        for name in options.peers:
            say(f"{dtype}: loading {name}")
            peers[name] = Peer(name, dtype, options)
            loads[name] = peers[name].facts
        for cell in cells:
            say(f"{dtype}: {cell.tower}, {cell.batch}")
            able = {name: peer for name, peer in peers.items() if "why" not in peer.facts}
            found = measure_cell(able, cell, options, reference, pace)
            rows += found
            if found and not options.json:
                print_cell(found)
    finally:
        for name, peer in peers.items():
            loads[name]["memory"] = peer.memory
            peer.close()
    return loads, rows


def measure_cell(
    peers: dict[str, Peer],
    cell: Cell,
    options: argparse.Namespace,
    reference: dict[Any, np.ndarray],
    pace: dict[tuple[str, str], float],
) -> list[dict]:
    """Times all peers on one cell.

    Args:
      reference: embeddings by tower and batch, of the first peer that computed them, in the first dtype.
      pace: seconds per row by peer and tower, in earlier cells.
    """
    rows = {}
    for name, peer in peers.items():
        expected = cell.batch * pace.get((name, "image" if cell.tower == "files" else cell.tower), 0)
        if expected > HOPELESS:
            rows[name] = {"why": f"a batch would take about {expected:.0f} s"}
        else:
            rows[name] = first_result(peer, cell, options, reference)
    turns = take_turns({name: peers[name] for name, row in rows.items() if "why" not in row}, cell, options)
    for name, taken in turns.items():
        rows[name] |= summary(taken, cell, options)
        if "seconds" in rows[name]:
            pace[name, cell.tower] = rows[name]["seconds"] / cell.batch
    ours, facts = rows.get("siglip_jax", {}).get("seconds"), peers["siglip_jax"].facts if "siglip_jax" in peers else {}
    for row in rows.values():
        measured = "seconds" in row
        row["ratio"] = row["seconds"] / ours if ours and measured else None
        flops = facts.get("flops", {}).get(cell.tower)
        row["of_matmul"] = flops * row["per_second"] / facts["matmul"] if flops and measured else None
    return [cell._asdict() | {"peer": name} | row for name, row in rows.items()]


def first_result(peer: Peer, cell: Cell, options: argparse.Namespace, reference: dict[Any, np.ndarray]) -> dict:
    """Embeds the batch once, which may compile; returns the difference to the reference, or why there is none."""
    file = options.folder / "result.npy"
    answer = peer.ask(tower=cell.tower, batch=cell.batch, calls=1, save=str(file))
    if "why" in answer:
        return answer
    found = np.load(file)
    difference = float(np.linalg.norm(found - reference.setdefault(cell[1:], found), axis=-1).max())
    if not difference <= TOLERANCE[cell.dtype]:
        return {"why": f"its embeddings differ by {difference:.2g}, more than {TOLERANCE[cell.dtype]:g}"}
    return {"difference": difference}


def take_turns(peers: dict[str, Peer], cell: Cell, options: argparse.Namespace) -> dict[str, list[dict]]:
    """Repeats the batch with each peer, in turns, and returns the answers."""
    calls = dict.fromkeys(peers, 1)
    turns: dict[str, list[dict]] = {name: [] for name in peers}
    started = time.perf_counter()
    for turn in range(options.repeats):
        if turn > 1 and time.perf_counter() - started > options.seconds:
            break
        for name, peer in peers.items():
            if turns[name] and ("why" in turns[name][-1] or turns[name][-1]["seconds"][0] > LONG):
                continue
            answer = peer.ask(tower=cell.tower, batch=cell.batch, calls=calls[name])
            if turn == 0 and "why" not in answer and answer["seconds"][0] < BURST:
                calls[name] = round(BURST / answer["seconds"][0]) + 1
                answer = peer.ask(tower=cell.tower, batch=cell.batch, calls=calls[name])
            turns[name].append(answer)
    return turns


def summary(turns: list[dict], cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the results of a peer from its undisturbed turns, or from all if none was undisturbed."""
    if "why" in turns[-1]:
        return turns[-1]
    clean = [turn for turn in turns if turn["foreign"] <= FOREIGN]
    used = clean or turns
    seconds = [statistics.median(turn["seconds"]) for turn in used]
    middle = statistics.median(seconds)
    return {
        "seconds": middle,
        "low": min(seconds),
        "high": max(seconds),
        "per_second": cell.batch / middle,
        "busy": statistics.median(turn["busy"] for turn in used) / options.threads,
        "foreign": statistics.median(turn["foreign"] for turn in used),
        "clean": len(clean),
        "turns": len(turns),
    }


def say(line: str) -> None:
    """Prints the progress on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Runs the benchmark and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=VARIANTS, default="base")
    parser.add_argument("--variant", help="name of a released checkpoint whose sizes replace --size")
    parser.add_argument("--dtypes", nargs="+", choices=TOLERANCE, default=list(TOLERANCE))
    parser.add_argument("--batches", type=int, nargs="+", help="default: 1 8 32, on a GPU also 256")
    known = [peer for peer in PEERS if peer != "siglip_jax other"]
    parser.add_argument("--peers", nargs="+", choices=known, default=known)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads and cores of each peer")
    parser.add_argument("--python", default=sys.executable, help="interpreter for siglip_jax")
    parser.add_argument("--other", help="another interpreter, with another jax, as a further peer")
    parser.add_argument("--repeats", type=int, default=5, help="largest number of turns of each peer")
    parser.add_argument("--seconds", type=float, default=20, help="time after which no third turn of a cell begins")
    parser.add_argument("--end-to-end", action="store_true", help="embed JPEG files too")
    parser.add_argument("--images", type=int, default=64, help="JPEG files")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the ratios")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.other:
        options.peers = [*options.peers, "siglip_jax other"]
    options.batches = options.batches or [1, 8, 32] + [256] * GPU
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the stopped peers too
    results: dict[str, Any] = {"load": {}, "rows": []}
    with tempfile.TemporaryDirectory() as name:
        options.folder = Path(name)
        script = str(Path(__file__).with_name("inference_files.py"))
        size = ["--size", options.variant or VARIANTS[options.size], "--rows", str(max(options.batches))]
        say("writing and exporting the model")
        words = [options.python, script, "model", name, *size, "--images", str(options.images)]
        subprocess.run(words, check=True, stdout=sys.stderr)
        if {"onnxruntime", "openvino"} & set(options.peers):
            with (options.folder / "export.log").open("w") as log:
                subprocess.run([sys.executable, script, "export", name], stdout=log, stderr=log)
        reference: dict[tuple[str, int], np.ndarray] = {}
        for dtype in options.dtypes:
            results["load"][dtype], rows = measure(dtype, options, reference)
            results["rows"] += rows
            if not options.json:
                print_loads(dtype, results["load"][dtype])
    if options.json:
        print(json.dumps(results, indent=2))
    if options.plot:
        plot(results["rows"], options.plot)


if __name__ == "__main__":
    main()
