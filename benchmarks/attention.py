"""Attention alone: speed and error of each implementation on this device.

    python benchmarks/attention.py [--batch 8] [--dtypes bfloat16] [--seconds 3] [--json]

Shapes are those of the towers of the base and so400m models; heads of so400m are 72 wide. "eager" and "xla" are the
values of `attn_implementation`, "cudnn" needs an NVIDIA GPU, and tokamax is measured if it is installed, with the
kernel that it chooses. All take turns; times are medians, a ratio above 1 is slower than "auto", and "error" is the
largest difference to float64 for values of order one.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from siglip_jax.models.attention import cudnn_attention, cudnn_supports
from siglip_jax.models.xla_attention import eager_attention, xla_attention


class Shape(NamedTuple):
    """The shape of the attention of one layer."""

    name: str
    tokens: int
    heads: int
    width: int


SHAPES = (
    Shape("base, 224 pixels", 196, 12, 64),
    Shape("base, text", 64, 12, 64),
    Shape("so400m, 224 pixels", 256, 16, 72),
    Shape("so400m, 384 pixels", 729, 16, 72),
)


def merged(attention: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns a function of separate heads for one that takes them merged, as the projections leave them."""

    def apply(*arrays: jax.Array) -> jax.Array:
        shape = arrays[0].shape
        return attention(shape[2], *(x.reshape(*x.shape[:2], -1) for x in arrays)).reshape(shape)

    return apply


def implementations() -> dict[str, Callable[..., jax.Array]]:
    """Returns the implementations, functions of queries, keys and values of (batch, tokens, heads, width), by name."""
    found: dict[str, Callable[..., jax.Array]] = {
        "eager": lambda q, k, v: eager_attention(q, k, v)[0],
        "xla": merged(xla_attention),
        "cudnn": merged(cudnn_attention),
    }
    try:
        import tokamax
    except ImportError:
        return found
    return found | {"tokamax": tokamax.dot_product_attention}


def truth(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Returns the attention output in float64."""
    scores = np.einsum("bqhd,bkhd->bhqk", query, key, optimize=True) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value, optimize=True)


def measure(shape: Shape, batch: int, dtype: str, seconds: float) -> list[dict[str, Any]]:
    """Returns the time and error of every implementation for one shape and dtype, or why it was not measured."""
    rng = np.random.default_rng(0)
    arrays = [
        jnp.asarray(rng.normal(size=(batch, shape.tokens, shape.heads, shape.width)), jnp.dtype(dtype))
        for _ in range(3)
    ]
    expected = truth(*(np.asarray(x, np.float64) for x in arrays))
    rows, ready = [], {}
    for name, function in implementations().items():
        row: dict[str, Any] = {**shape._asdict(), "batch": batch, "dtype": dtype, "implementation": name}
        rows.append(row)
        try:
            jitted = jax.jit(function)
            found = np.asarray(jitted(*arrays).block_until_ready(), np.float64)
        except Exception as error:  # libraries raise anything when they cannot run here
            if name in ("eager", "xla"):  # these run everywhere
                raise
            row["why"] = str(error).partition("\n")[0]
            continue
        row["error"] = float(np.abs(found - expected).max())
        ready[name] = jitted
    times: dict[str, list[float]] = {name: [] for name in ready}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(min(times.values(), key=len)) < 3:
        for name, function in ready.items():
            start = time.perf_counter()
            function(*arrays).block_until_ready()
            times[name].append(time.perf_counter() - start)
    chosen = "cudnn" if jax.default_backend() == "gpu" and cudnn_supports(dtype, shape.width) else "xla"
    for row in rows:
        if "why" not in row:
            row["seconds"] = statistics.median(times[row["implementation"]])
            row["chosen"] = row["implementation"] == chosen
    own = next((row["seconds"] for row in rows if row.get("chosen")), None)
    for row in rows:
        row["ratio"] = row["seconds"] / own if own and "seconds" in row else None
    return rows


def main() -> None:
    """Runs the benchmark and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--dtypes", nargs="+", choices=("float32", "bfloat16", "float16"), default=["float32", "bfloat16"]
    )
    parser.add_argument("--seconds", type=float, default=3, help="duration for each shape and dtype")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    device = jax.local_devices()[0]
    facts = {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__}
    results = []
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
    for dtype in options.dtypes:
        for shape in SHAPES:
            rows = measure(shape, options.batch, dtype, options.seconds)
            results += rows
            if not options.json:
                report(rows)
    if options.json:
        print(json.dumps(facts | {"rows": results}, indent=2))


def report(rows: list[dict[str, Any]]) -> None:
    """Prints the rows of one shape and dtype."""
    first = rows[0]
    title = f"{first['name']}: {first['batch']} x {first['tokens']} tokens, {first['heads']} heads of {first['width']}"
    print(f"\n{title}, {first['dtype']}")
    for row in rows:
        name = row["implementation"]
        if "why" in row:
            print(f"  {name:<8} not measured ({row['why']})")
            continue
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        mark = "  auto" if row["chosen"] else ""
        print(f"  {name:<8} {1000 * row['seconds']:>9.3f} ms {ratio:>6} error {row['error']:.1e}{mark}")


if __name__ == "__main__":
    main()
