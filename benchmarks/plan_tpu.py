"""Plans of training steps on TPU pods that are not there: estimates of XLA, not measurements.

    python benchmarks/plan_tpu.py --out benchmarks/results/plan-tpu --only "recipe scratch"
    python benchmarks/plan_tpu.py --out benchmarks/results/plan-tpu-siglip2 --only "recipe siglip2"

Runs the `siglip-jax plan` commands below one after another, each in a process of its own, and writes FILE.txt, what
they print, and FILE.json, after each. Plans that FILE.json has from the same versions of jax and libtpu stay; `--only`
runs those whose command contains a text. Each takes some minutes and up to 8 GB. Needs the extra `tpu`.
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import subprocess
import sys
import time
from pathlib import Path

from siglip_jax._files import write_atomically
from siglip_jax.cli.plan import print_found
from siglip_jax.planning import Plan

SIGLIP = "--batch-size 32768 --recipe scratch-b16"
SIGLIP2 = "--topology v5e:16x16 --batch-size 32768 --recipe siglip2 --mesh data=32,fsdp=8"
COMMANDS = (
    f"google/siglip-so400m-patch14-384 --topology v5e:16x16 {SIGLIP} --mesh data=16,fsdp=16 --micro-batches 2",
    f"google/siglip-so400m-patch14-384 --topology v5p:8x8x8 {SIGLIP} --mesh data=64,fsdp=8"
    " --remat dots_with_no_batch_dims",
    f"google/siglip2-giant-opt-patch16-384 --topology v5e:16x16 {SIGLIP} --mesh data=16,fsdp=16 --micro-batches 4",
    f"google/siglip2-giant-opt-patch16-384 --topology v5p:8x8x8 {SIGLIP} --mesh data=64,fsdp=8"
    " --remat dots_with_no_batch_dims",
    f"google/siglip2-base-patch16-256 {SIGLIP2} --stage 1",
    f"google/siglip2-base-patch16-256 {SIGLIP2} --stage 2",
    f"google/siglip2-large-patch16-256 {SIGLIP2} --stage 1",
    f"google/siglip2-large-patch16-256 {SIGLIP2} --stage 2 --micro-batches 2",
    f"google/siglip2-so400m-patch14-224 {SIGLIP2} --stage 1",
    f"google/siglip2-so400m-patch14-224 {SIGLIP2} --stage 2 --micro-batches 2",
)


def text_of(rows: list[dict]) -> str:
    """Returns what the commands print."""
    parts = ["Training steps on pods that were not there, estimated by XLA, not measured (benchmarks/plan_tpu.py).\n"]
    for row in rows:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            print_found(Plan.from_dict(row["plan"]), as_json=False)
        parts.append(f"$ siglip-jax plan {row['command']}\n\n{printed.getvalue()}")
    return "\n\n".join(parts)


def main() -> None:
    """Runs the commands and writes their plans."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="path of both files, without suffix")
    parser.add_argument("--only", default="", metavar="TEXT", help="run the commands that contain a text")
    options = parser.parse_args()
    text, data = (options.out.with_name(f"{options.out.name}.{suffix}") for suffix in ("txt", "json"))
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    rows: dict[str, dict] = {}
    if data.exists():
        rows = {row["command"]: row for row in json.loads(data.read_text()) if row["plan"]["versions"] == versions}
    for command in COMMANDS:
        if command in rows or options.only not in command:
            continue
        start = time.perf_counter()
        found = subprocess.run(
            [sys.executable, "-m", "siglip_jax", "plan", *command.split(), "--json"], stdout=subprocess.PIPE, text=True
        )
        if found.returncode:
            print(f"{command}: exit status {found.returncode}", file=sys.stderr, flush=True)
            continue
        rows[command] = {"command": command, "plan": json.loads(found.stdout)}
        ordered = [rows[known] for known in COMMANDS if known in rows]
        write_atomically(data, (json.dumps(ordered, indent=1) + "\n").encode())
        write_atomically(text, text_of(ordered).encode())
        print(f"{command}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
