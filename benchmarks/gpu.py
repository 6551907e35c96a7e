"""Loss, training, inference and attention on one GPU, beside torch: one command, under eight minutes on an H100.

    python benchmarks/gpu.py --out DIRECTORY          # everything
    python benchmarks/gpu.py --out DIRECTORY --tiny   # rehearsal of every kind of row on a CPU, in about a minute
    python benchmarks/gpu.py --out DIRECTORY --aot    # compiles our side for an H100, on a machine without one

Every row is written to DIRECTORY/results.jsonl as soon as it is measured, and DIRECTORY/results.txt is written anew
with the rows of each cell side by side, so what was measured before a run was cut off counts. A section (training,
loss, forward, attention) has a share of the time and its most valuable rows first; rows for which no time is left, and
rows that fail, say why. Ours and torch are processes of their own, one after the other, so that each has the whole
card. Times are medians of turns of queued calls after one to warm up; "latency" is that of a single call. TFLOP/s leave
out what is computed again, and are compared with the card's own product of 8192 x 8192 matrices.

Needs jax with CUDA, flax, optax, orbax-checkpoint, jaxtyping, numpy, pillow, safetensors and sentencepiece; for int8
and fp8 qwix; for the other side torch and transformers, and siglip-kernel where installed. This package need not be
installed: the checkout is enough. On a machine that reaches no registry, bring qwix and siglip-kernel as wheels:

    pip download --no-deps -d wheels qwix siglip-kernel                      # 0.2 MB
    pip install --no-index --no-deps --target site wheels/*.whl; PYTHONPATH=site python benchmarks/gpu.py --out results

--aot needs no GPU, but jax's CUDA plug-in: pip install jax-cuda12-plugin jax-cuda12-pjrt and the wheels
nvidia-{cuda-nvcc,cudnn,cublas,cuda-runtime,nccl,cuda-cupti,cusolver,cusparse,cufft,nvjitlink,cuda-nvrtc,nvshmem}-cu12.
"""

import argparse
import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import gpu_h100
from gpu_plan import FULL, SHARE, SIDES, TINY, Row, line_of, plan, report, result

SILENT = 120.0  # seconds without an answer after which a process is ended
OURS = 0.6  # of the time of a section
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # of a rehearsal, whose times say nothing


class Unit(NamedTuple):
    """Rows of a section that one side measures.

    Attributes:
      side: the side.
      rows: the rows.
      until: share of the time of the run after which they end.
    """

    side: str
    rows: list[Row]
    until: float


def units(rows: list[Row], sides: list[str]) -> list[Unit]:
    """Returns the rows in the order in which they are measured."""
    found, spent = [], 0.0
    for section, share in SHARE.items():
        for side in sides:
            spent += share * (1.0 if len(sides) == 1 else OURS if side == "ours" else 1 - OURS)
            own = [row for row in rows if (row.section, row.side) == (section, side)]
            found.append(Unit(side, own, spent))
    return found


class Worker:
    """A process of one side; it imports its libraries at once, and uses the card only after `order`."""

    def __init__(self, side: str, folder: Path, how: str | None, python: str) -> None:
        root = Path(__file__).parents[1]
        path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        # One process has the card at a time; a pool that is allocated at once is the least fragmented.
        own = {"PYTHONPATH": path, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9", "TF_CPP_MIN_LOG_LEVEL": "2"}
        if side == "torch":  # which asks jax for nothing but sizes
            own["JAX_PLATFORMS"] = "cpu"
        # What a process that was ended left half-written must not reach another run.
        own |= {
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        }
        environment = os.environ | own | {None: {}, "aot": gpu_h100.ENVIRONMENT, "tiny": QUICK}[how]
        command = [python, str(Path(__file__).with_name("gpu_worker.py")), side, *filter(None, [how])]
        self.log = folder / f"{side} {time.monotonic_ns()}.log"
        with self.log.open("w") as log:
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
            self.process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
        self.answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(None)

    def order(self, rows: list[Row], seconds: float) -> None:
        """Sends the rows."""
        with contextlib.suppress(BrokenPipeError):  # the answers end at once, and say so
            print(json.dumps({"rows": rows, "seconds": seconds}), file=self.process.stdin, flush=True)

    def answer(self, seconds: float) -> dict[str, Any] | str:
        """Returns the next answer, or why there is none."""
        try:
            line = self.answers.get(timeout=None if math.isinf(seconds) else max(seconds, 0.01))
        except queue.Empty:
            return f"no answer for {seconds:.0f} s"
        if line is not None:
            return json.loads(line)
        last = self.log.read_text(errors="replace").strip().rpartition("\n")[2]
        return f"the process ended with status {self.process.wait()}: {last[:200]}"

    def close(self) -> None:
        """Ends the process and those that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Results:
    """What was measured, written after every row."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.json, self.text = directory / "results.jsonl", directory / "results.txt"
        self.json.write_text("")
        self.facts: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []

    def add(self, row: Row, answer: dict[str, Any]) -> None:
        """Writes a row."""
        found = result(row, answer)
        self.rows.append(found)
        self._write(found)
        print(f"{row.section}: {row.cell}\n{line_of(found, None, None)}", flush=True)

    def know(self, facts: dict[str, Any]) -> None:
        """Writes what is known of the machine."""
        if facts.items() - self.facts.items():
            self.facts |= facts
            self._write({"facts": facts})

    def _write(self, line: dict[str, Any]) -> None:
        with self.json.open("a") as file:
            print(json.dumps(line), file=file, flush=True)
        self.text.write_text(report(self.facts, self.rows))


def run(unit: Unit, worker: Worker, results: Results, end: float, seconds: float, new: Any) -> None:
    """Measures the rows of a unit, with a new process after one that ended."""
    rows = unit.rows
    while rows:
        worker.order(rows, seconds)
        done = 0
        while done < len(rows):
            left = end - time.monotonic()
            answer = worker.answer(left if math.isinf(left) else min(SILENT, left))
            if isinstance(answer, dict):
                results.know(answer.get("facts", {}))
                if "row" in answer:
                    results.add(rows[answer.pop("row")], answer)
                    done += 1
            elif time.monotonic() >= end:
                for row in rows[done:]:
                    results.add(row, {"why": "no time was left"})
                done = len(rows)
            else:
                results.add(rows[done], {"why": answer})
                done += 1
                break
        rows = rows[done:]
        worker.close()
        if rows:
            worker = new()


def main() -> None:
    """Runs the benchmark and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIRECTORY", help="results.jsonl and results.txt")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to rehearse on a CPU")
    parser.add_argument("--aot", action="store_true", help="compile our side for an H100, and measure nothing")
    parser.add_argument("--seconds", type=float, default=450, help="duration of a run that measures, at most")
    parser.add_argument("--sections", nargs="+", choices=SHARE, default=list(SHARE))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON", help="interpreter of the side of torch")
    options = parser.parse_args()
    began, sizes = time.monotonic(), TINY if options.tiny else FULL
    sides = ["ours"] if options.aot else options.sides
    waiting = units([row for row in plan(sizes) if row.section in options.sections], sides)
    waiting = [unit for unit in waiting if unit.rows]
    results = Results(options.out)
    with tempfile.TemporaryDirectory() as name:
        workers: list[Worker] = []
        how = "aot" if options.aot else "tiny" if options.tiny else None

        def worker(unit: Unit) -> Worker:
            python = options.torch if unit.side == "torch" else sys.executable
            workers.append(Worker(unit.side, Path(name), how, python))
            return workers[-1]

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the processes too
        seconds = math.inf if options.aot else options.seconds
        following = worker(waiting[0])
        try:
            for i, unit in enumerate(waiting):
                own, end = following, began + seconds * unit.until / waiting[-1].until
                if i + 1 < len(waiting):
                    following = worker(waiting[i + 1])  # imports while this one measures
                run(unit, own, results, end, sizes.seconds, lambda unit=unit: worker(unit))
        finally:
            for one in workers:
                one.close()
    print(f"\n{results.text.read_text()}\n{time.monotonic() - began:.0f} s; {results.json} and {results.text}")


if __name__ == "__main__":
    main()
