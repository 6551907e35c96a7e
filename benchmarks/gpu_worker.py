"""A side of `benchmarks/gpu.py`: a process that measures rows of one framework, so that the other has the whole card.

The rows come as one line of JSON; every answer is a line of JSON. With `aot` they are compiled for an H100 instead.
"""

import importlib
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from gpu_plan import Row

LONGEST = 3.0  # seconds of a call after which it is not repeated more than once
TURN = 0.05  # shortest turn in seconds


def timed(step: Callable[[], Any], wait: Callable[[Any], Any], seconds: float) -> dict[str, Any]:
    """Returns the median time of a call: in a queue of calls, and alone if that is short, after one to warm up."""
    wait(step())
    start = time.perf_counter()
    wait(step())
    once = time.perf_counter() - start
    if once > LONGEST:
        return {"seconds": once, "turns": 1}
    calls, turns, alone = max(1, round(TURN / once)) if seconds else 1, [], [once]
    end = time.perf_counter() + seconds
    while len(turns) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(calls - 1):
            step()
        wait(step())
        turns.append((time.perf_counter() - start) / calls)
        start = time.perf_counter()
        wait(step())
        alone.append(time.perf_counter() - start)
    latency = {"latency_ms": 1000 * statistics.median(alone)} if once < TURN else {}
    return {"seconds": statistics.median(turns), "turns": len(turns)} | latency


def in_a_line(error: BaseException) -> str:
    """Returns an error as one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:240]


def main() -> None:
    """Measures the rows that stdin lists; output of libraries goes to stderr."""
    side, *how = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")  # only the answers are read
    module = importlib.import_module(f"gpu_{side}")  # ahead of the order, while the other side still measures
    order = json.loads(sys.stdin.readline())
    rows = [Row(*row) for row in order["rows"]]

    def answer(**facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    if how == ["aot"]:
        module.compile_ahead(rows, answer)
        return
    answer(facts=module.facts())
    module.measure(rows, order["seconds"], answer)


if __name__ == "__main__":
    main()
