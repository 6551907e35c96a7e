"""The tables and the plot of `benchmarks/inference.py`."""

from pathlib import Path
from typing import Any

from inference_peers import PEERS


def print_loads(dtype: str, loads: dict[str, dict[str, Any]]) -> None:
    """Prints the load times of the peers in one dtype."""
    if matmul := loads.get("siglip_jax", {}).get("matmul"):
        print(f"\na large matrix product of {dtype} in jax: {matmul / 1e9:,.0f} GFLOP/s")
    print(f"\n{dtype:<16} {'load':>8} {'first':>8} {'peak memory':>12}   versions")
    for name, facts in loads.items():
        if "why" in facts:
            print(f"{name:<16} not measured ({facts['why']})")
            continue
        memory = " + ".join(f"{size / 2**30:.2f}" for size in facts["memory"].values())
        versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
        print(f"{name:<16} {facts['load']:>6.2f} s {facts['first']:>6.2f} s {memory:>8} GiB   {versions}", flush=True)


def print_cell(rows: list[dict[str, Any]]) -> None:
    """Prints the rows of one cell."""
    cell = rows[0]
    tower = f"{cell['tower']} tower, batch {cell['batch']}"
    what = f"{cell['batch']} JPEG files" if cell["tower"] == "files" else tower
    head = f"{what}, {cell['dtype']}"
    print(f"\n{head:<32} {'batch':>11} {'rows':>10} {'ratio':>7} {'of matmul':>10} {'cores busy':>11} {'clean':>6}")
    for row in rows:
        if "why" in row:
            print(f"  {row['peer']:<30} not measured ({row['why']})")
            continue
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        share = "" if row["of_matmul"] is None else f"{row['of_matmul']:.0%}"
        print(
            f"  {row['peer']:<30} {1000 * row['seconds']:>8.1f} ms {row['per_second']:>8.1f}/s {ratio:>7} {share:>10}"
            f" {row['busy']:>11.0%} {row['clean']:>4}/{row['turns']}",
            flush=True,
        )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the ratios as bars: a panel for each dtype, a group for each cell."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.get("ratio") and row["peer"] != "siglip_jax"]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    if not dtypes:
        raise SystemExit(f"{path}: rows must have a peer beside siglip_jax, got none; measure another peer")
    colours = {peer: f"C{i}" for i, peer in enumerate(PEERS)}
    figure = Figure(figsize=(12, 3 * len(dtypes)), dpi=110, layout="constrained")
    for axes, dtype in zip(figure.subplots(len(dtypes), 1, squeeze=False)[:, 0], dtypes, strict=True):
        found = {(row["tower"], row["batch"], row["peer"]): row["ratio"] for row in rows if row["dtype"] == dtype}
        cells = list(dict.fromkeys(key[:2] for key in found))
        peers = [peer for peer in PEERS if any(key[2] == peer for key in found)]
        width = 0.8 / len(peers)
        for i, peer in enumerate(peers):
            bars = {j: found[*cell, peer] for j, cell in enumerate(cells) if (*cell, peer) in found}
            places = [j + (i - (len(peers) - 1) / 2) * width for j in bars]
            heights = [ratio - 1 for ratio in bars.values()]
            drawn = axes.bar(places, heights, 0.92 * width, bottom=1, label=peer, color=colours[peer])
            axes.bar_label(drawn, [f"{ratio:.3g}" for ratio in bars.values()], fontsize=7, padding=1)
        axes.axhline(1, color="black", lw=1)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.margins(y=0.15)
        axes.set_xticks(range(len(cells)), [f"{tower}, {batch}" for tower, batch in cells])
        title = f"{dtype}: speed of siglip_jax relative to the peer (above 1: faster)"
        axes.set_title(title, loc="left", fontsize=10)
        axes.legend(fontsize=8, ncols=len(peers), frameon=False, loc="upper left", bbox_to_anchor=(0, -0.08))
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
