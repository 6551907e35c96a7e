"""The load of a server: many threads that each request one embedding after another, with and without the batcher.

    python benchmarks/batcher.py [--seconds 60] [--threads 64] [--max-delay 0.005] [--model NAME_OR_PATH] [--json]

Every thread requests random example images or texts and waits for each answer, first from one shared `Batcher`, then
from `encode_image` and `encode_text` themselves, for `--seconds` each. Every answer is compared with the embedding
computed beforehand: `crossed` counts answers that differ by more than 1e-5, `lost` calls without an answer, `refused`
calls that found the queue full. A ratio above 1 means that the batcher answers more.
"""

import argparse
import json
import threading
import time
from collections.abc import Callable

import numpy as np

import siglip_jax
from siglip_jax.inference import Siglip

EXAMPLES = sorted(siglip_jax.assets.EXAMPLES.glob("*.png"))
TEXTS = [f"a picture of a {path.stem}" for path in EXAMPLES]
SIZES = (1, 2, 4, 8, 16, 32, 64)  # batch sizes, compiled beforehand
COLUMNS = ("requests", "answered", "lost", "crossed", "refused", "per_second", "p50_ms", "p99_ms", "mean_batch")


def main() -> None:
    """Runs the benchmark and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--texts", type=float, default=0.3, help="share of the calls that request a text")
    parser.add_argument("--max-batch-size", type=int)
    parser.add_argument("--max-delay", type=float, default=0.005)
    parser.add_argument("--queue-size", type=int, default=256)
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="default: the bundled model")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    siglip = siglip_jax.load(options.model)
    known = siglip.encode_image(EXAMPLES), siglip.encode_text(TEXTS)
    for size in SIZES:
        siglip.encode_image(EXAMPLES[:size], batch_size=size)
        siglip.encode_text((TEXTS * 2)[:size], batch_size=size)
    with siglip_jax.Batcher(
        siglip, max_batch_size=options.max_batch_size, max_delay=options.max_delay, queue_size=options.queue_size
    ) as batcher:
        rows = [{"side": "Batcher"} | load(batcher, known, options)]
    rows[0]["mean_batch"] = batcher.rows / batcher.batches
    rows.append({"side": "encode_*"} | load(siglip, known, options) | {"mean_batch": 1.0})
    ratio = rows[0]["per_second"] / rows[1]["per_second"]
    if options.json:
        print(json.dumps({"rows": rows, "ratio": ratio}, indent=2))
        return
    print(f"{'side':<9}" + "".join(f"{name:>12}" for name in COLUMNS))
    for row in rows:
        cells = (f"{row[name]:>12.1f}" if isinstance(row[name], float) else f"{row[name]:>12}" for name in COLUMNS)
        print(f"{row['side']:<9}" + "".join(cells))
    print(f"ratio of answers per second: {ratio:.2f}")


def load(
    encoder: Siglip | siglip_jax.Batcher, known: tuple[np.ndarray, np.ndarray], options: argparse.Namespace
) -> dict:
    """Puts the encoder under the load of all threads and returns the counts, rates and latencies."""
    seconds: list[float] = []
    counts = dict.fromkeys(("requests", "crossed", "refused"), 0)
    lock = threading.Lock()
    begin = time.monotonic()
    end = begin + options.seconds

    def client(number: int) -> None:
        rng = np.random.default_rng(number)
        mine, took = dict.fromkeys(counts, 0), []
        try:
            while time.monotonic() < end:
                i, is_text = int(rng.integers(len(EXAMPLES))), bool(rng.random() < options.texts)
                encode: Callable = encoder.encode_text if is_text else encoder.encode_image
                mine["requests"] += 1
                start = time.perf_counter()
                try:
                    (found,) = encode(TEXTS[i] if is_text else EXAMPLES[i])
                except siglip_jax.QueueFullError:
                    mine["refused"] += 1
                    time.sleep(0.01)
                    continue
                took.append(time.perf_counter() - start)
                mine["crossed"] += bool(np.abs(found - known[is_text][i]).max() > 1e-5)
        finally:  # a thread that dies leaves a request without an answer
            with lock:
                seconds.extend(took)
                for name in counts:
                    counts[name] += mine[name]

    threads = [threading.Thread(target=client, args=(i,)) for i in range(options.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - begin
    p50, p99 = np.percentile(seconds, (50, 99)) * 1000
    answered = len(seconds)
    lost = counts["requests"] - counts["refused"] - answered
    return counts | {
        "answered": answered, "lost": lost, "per_second": answered / took, "p50_ms": float(p50), "p99_ms": float(p99)
    }  # fmt: skip


if __name__ == "__main__":
    main()
