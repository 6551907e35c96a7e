"""Inference beside its peers on this machine: embeddings per second, load time, memory, JPEG files, the cold start.

    python benchmarks/inference.py [--size base|tiny] [--dtypes float32 int8] [--batches 1 8] [--end-to-end] [--json]
    python benchmarks/inference.py --variant siglip-so400m-patch14-384 --plot ratios.png

Peers: `transformers` on torch (eager, sdpa, torch.compile), ONNX Runtime, OpenVINO; on a GPU those of them that use it.
What is not installed, or has no such type, is "not measured", with the reason. All have the same random weights and the
same inputs. Timed is a tower, from arrays in host memory to normalised embeddings in host memory; a peer whose
embeddings differ is not timed. Each is a process with its own threads on the same cores. They take turns, a repetition
each; the others are stopped meanwhile (SIGSTOP). A repetition during which other processes used more than 0.12 cores
counts only if there is no better one. Figures are medians; a ratio above 1 means that this library is faster.

Load time is from files to a model that can be called, the libraries being imported; "first" adds the first embedding,
so compilation. --end-to-end embeds JPEG files with `encode_image`, beside torch with decoding in threads. --cold-start
times whole processes that classify a picture. Linux only. Peers need the extra `test`, onnx, onnxscript, onnxruntime,
openvino.
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
from typing import Any

import numpy as np
from inference_peers import PEERS, TOWERS
from inference_report import plot, print_cell, print_loads

VARIANTS = {"base": "siglip-base-patch16-224", "tiny": "tiny"}
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.3}  # length of the difference of two unit vectors
FOREIGN = 0.12  # cores
BURST = 0.5  # seconds a repetition lasts at least
LONG = 10.0  # seconds of a batch that is not timed again
HOPELESS = 40.0  # seconds of a batch that is not tried
TICKS = os.sysconf("SC_CLK_TCK")
LABELS = ["a cat", "a dog", "a house", "a tree"]
REFERENCE_COMMAND = """
import sys, transformers
kind = "zero-shot-image-classification"
processor = transformers.SiglipImageProcessorPil.from_pretrained(sys.argv[1])
pipe = transformers.pipeline(kind, sys.argv[1], image_processor=processor)
print(pipe(sys.argv[2], candidate_labels=sys.argv[3:], hypothesis_template="{}"))
"""


class Peer:
    """A process that runs only while it is asked something."""

    def __init__(self, name: str, dtype: str, folder: Path, options: argparse.Namespace) -> None:
        python = options.python if name == "siglip_jax" else sys.executable
        command = [python, str(Path(__file__).with_name("inference_peers.py")), name, str(folder), dtype]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        log = (folder / f"{name} {dtype}.log").open("w")
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
        self.process = subprocess.Popen([*command, str(options.threads)], env=environment, **pipes)
        self.facts = self.answer()

    def answer(self) -> dict[str, Any]:
        """Waits for the next answer, and stops the process."""
        line = self.process.stdout.readline()
        if not line:
            return {"why": f"its process ended with status {self.process.wait()}"}
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def ask(self, **order: Any) -> dict[str, Any]:
        """Lets the process do one thing; adds to its answer the cores that other processes used meanwhile."""
        start, busy, own = time.perf_counter(), machine_ticks(), self.ticks()
        self.process.send_signal(signal.SIGCONT)
        print(json.dumps(order), file=self.process.stdin, flush=True)
        answer = self.answer()
        seconds = time.perf_counter() - start
        if "seconds" in answer:
            answer["foreign"] = (machine_ticks() - busy - (self.ticks() - own)) / TICKS / seconds
        return answer

    def ticks(self) -> int:
        """Returns the processor time of the process and of this one, which waits for it."""
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
    """Returns the processor time that all processes, and the host of a virtual machine, have used."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return user + nice + system + irq + softirq + steal


def measure(dtype: str, folder: Path, options: argparse.Namespace, reference: dict) -> tuple[dict, list[dict]]:
    """Returns what loading took for each peer, and the rows of all cells of this type."""
    peers, loads = {}, {}
    for name in options.peers:
        say(f"{dtype}: {name} loads")
        peer = Peer(name, dtype, folder, options)
        loads[name] = peer.facts
        if "why" in peer.facts:
            peer.close()
        else:
            peers[name] = peer
    rows, slowest = [], {}
    towers = [(tower, batch) for tower in TOWERS for batch in options.batches]
    try:
        for tower, batch in towers + ([("files", options.pictures)] if options.end_to_end else []):
            say(f"{dtype}: {tower}, {batch}")
            cell = measure_cell(peers, dtype, tower, batch, folder, options, reference, slowest)
            rows += cell
            if cell and not options.json:
                print_cell(cell)
    finally:
        for name, peer in peers.items():
            loads[name]["memory"] = peer.ask(tower="text", batch=1, calls=1).get("memory")
            peer.close()
    return loads, rows


def measure_cell(
    peers: dict[str, Peer],
    dtype: str,
    tower: str,
    batch: int,
    folder: Path,
    options: argparse.Namespace,
    reference: dict[tuple[str, int], np.ndarray],
    slowest: dict[tuple[str, str], float],
) -> list[dict]:
    """Times all peers on one batch, in turns.

    Args:
      reference: float32 embeddings by tower and batch; filled by the first peer to embed them.
      slowest: seconds a row by peer and tower, of the batches before.
    """
    rows, running = {}, {}
    cell = {"dtype": dtype, "tower": tower, "batch": batch}
    for name, peer in peers.items():
        expected = slowest.get((name, "image" if tower == "files" else tower), 0) * batch
        if expected > HOPELESS:
            rows[name] = {"why": f"a batch would take about {expected:.0f} s"}
            continue
        saved = folder / "result.npy"
        answer = peer.ask(tower=tower, batch=batch, calls=1, save=str(saved))
        if "why" not in answer:
            found = np.load(saved)
            difference = float(np.linalg.norm(found - reference.setdefault((tower, batch), found), axis=-1).max())
            if not difference <= TOLERANCE[dtype]:
                answer = {"why": f"its embeddings differ by {difference:.2g}"}
            else:
                running[name] = {"difference": difference, "turns": [], "calls": 1}
        if "why" in answer:
            rows[name] = {"why": answer["why"]}
    started = time.perf_counter()
    for turn in range(options.repeats):
        if turn > 1 and time.perf_counter() - started > options.seconds:
            break
        for name, facts in running.items():
            if facts["turns"] and facts["turns"][-1]["seconds"][0] > LONG:
                continue
            facts["turns"].append(peers[name].ask(tower=tower, batch=batch, calls=facts["calls"]))
            if not turn and (call := min(facts["turns"][0]["seconds"])) < BURST:
                facts["calls"], facts["turns"] = round(BURST / call) + 1, []  # too short to count: now we know how many
    for name, facts in running.items():
        clean = [turn for turn in facts["turns"] if turn["foreign"] <= FOREIGN]
        used = clean or facts["turns"]
        seconds = [statistics.median(turn["seconds"]) for turn in used]
        middle = statistics.median(seconds)
        slowest[name, tower] = middle / batch
        rows[name] = {
            "seconds": middle,
            "low": min(seconds),
            "high": max(seconds),
            "per_second": batch / middle,
            "busy": statistics.median(turn["busy"] for turn in used) / options.threads,
            "clean": len(clean),
            "turns": len(facts["turns"]),
            "difference": facts["difference"],
        }
    ours = rows.get("siglip_jax", {}).get("seconds")
    for row in rows.values():
        row["ratio"] = row["seconds"] / ours if ours and "seconds" in row else None
    return [cell | {"peer": name} | rows[name] for name in peers]


def cold_start(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Times whole processes that classify one picture, in turns; seconds are medians."""
    picture = str(next(folder.glob("pictures/*/*.jpg")))
    model = str(folder)
    commands = {
        "siglip_jax": [options.python, "-m", "siglip_jax", "classify", picture, "--model", model, "--labels"],
        "transformers": [sys.executable, "-c", REFERENCE_COMMAND, model, picture],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(4):
        for name, command in commands.items():
            say(f"cold start {turn + 1} of {name}")
            start = time.perf_counter()
            subprocess.run([*command, *LABELS], check=True, capture_output=True)
            if turn:  # the first one reads the libraries from the disk
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def say(line: str) -> None:
    """Tells whoever waits what is going on."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Runs the benchmark and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=VARIANTS, default="base")
    parser.add_argument("--variant", help="name of a released checkpoint whose sizes are taken instead of --size")
    parser.add_argument("--dtypes", nargs="+", choices=TOLERANCE, default=list(TOLERANCE))
    parser.add_argument("--batches", type=int, nargs="+", help="1 8 32 by default, on a GPU 256 too")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each peer, and cores it may use")
    parser.add_argument("--python", default=sys.executable, help="interpreter for siglip_jax")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each peer at most")
    parser.add_argument("--seconds", type=float, default=20, help="no third turn of a cell begins after these")
    parser.add_argument("--end-to-end", action="store_true", help="embed JPEG files too")
    parser.add_argument("--pictures", type=int, default=64, help="JPEG files")
    parser.add_argument("--cold-start", action="store_true", help="time whole processes too")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the ratios")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    options.batches = options.batches or [1, 8, 32] + [256] * Path("/proc/driver/nvidia").exists()
    results: dict[str, Any] = {"load": {}, "rows": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = str(Path(__file__).with_name("inference_files.py"))
        size = ["--size", options.variant or VARIANTS[options.size], "--rows", str(max(options.batches))]
        say("writing the model, exporting it")
        words = [options.python, script, "model", name, *size, "--pictures", str(options.pictures)]
        subprocess.run(words, check=True, stdout=sys.stderr)
        if {"onnxruntime", "openvino"} & set(options.peers):
            with (folder / "export.log").open("w") as log:
                subprocess.run([sys.executable, script, "export", name], stdout=log, stderr=log)
        reference: dict[tuple[str, int], np.ndarray] = {}
        for dtype in options.dtypes:
            results["load"][dtype], rows = measure(dtype, folder, options, reference)
            results["rows"] += rows
            if not options.json:
                print_loads(dtype, results["load"][dtype])
        if options.cold_start:
            found = results["cold_start"] = cold_start(folder, options)
            if not options.json:
                ours, theirs = found["siglip_jax"], found["transformers"]
                print(
                    f"\ncold start, one picture: {ours:.2f} s, transformers {theirs:.2f} s, ratio {theirs / ours:.2f}"
                )
    if options.json:
        print(json.dumps(results, indent=2))
    if options.plot:
        plot(results["rows"], options.plot)


if __name__ == "__main__":
    main()
