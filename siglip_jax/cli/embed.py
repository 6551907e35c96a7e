"""Embeds every image of a folder or data set, or every line of a text file, into a directory of numbered parts.

SRC is a folder of images, tar shards, Parquet, Arrow, JSON lines, CSV or COCO's .json beside images, or a .txt file
with one text per line. A run may be stopped or killed at any time; the same command resumes it, and at most a minute's
work of a killed run is done again. Unreadable items are reported on stderr and listed in DIR/errors.jsonl; the exit
status is 2 only if nothing could be read.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from siglip_jax._checks import DTYPES, QUANTIZATIONS
from siglip_jax._files import output_path
from siglip_jax.cli._data import add_data_arguments, column_names, say_left_out
from siglip_jax.cli._output import (
    add_max_pixels,
    print_table,
    progress,
    report_unreadable,
    say,
    whole_number,
)

HELP = "embed many images or texts into a directory"
EPILOG = f"""examples:
  siglip-jax embed photos/ --out photos-embedded
  siglip-jax embed "shards/{{000..099}}.tar" --out embedded --model google/siglip-base-patch16-224 --format parquet
  siglip-jax embed shards/ --out embedded --shard 0/4   # and 1/4, 2/4, 3/4 on other machines or devices
  siglip-jax embed captions.txt --out captions-embedded
  siglip-jax embed photos/ --out photos-embedded --update   # after photos were added, changed or removed
then: siglip-jax search photos-embedded "a cat"

{column_names("image")}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("source", metavar="SRC", help="folder, data set or text file")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory for the embeddings")
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="Hub name or directory (default: the bundled model)")
    parser.add_argument("--dtype", choices=DTYPES, help="compute dtype (default: float32)")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="number format of the weights (default: none)")
    parser.add_argument("--format", choices=("npy", "parquet"), help="file format of the parts (default: npy)")
    parser.add_argument("--shard", type=_shard, metavar="I/N", help="do the share of process I of N, counted from 0")
    parser.add_argument("--part-size", type=whole_number, metavar="N", help="items in a part (default: 2048)")
    parser.add_argument(
        "--batch-size", type=whole_number, metavar="N", help="items per batch (default: chosen for the device)"
    )
    parser.add_argument(
        "--storage", choices=("float32", "float16"), help="dtype of the stored embeddings (default: float32)"
    )
    parser.add_argument(
        "--update", action="store_true", help="embed what is new or changed in SRC, and remove what is gone"
    )
    parser.add_argument(
        "--columns", nargs="+", default=(), metavar="NAME", help="columns of a table or Parquet to print with matches"
    )
    parser.add_argument("--image-key", metavar="NAME", help="column, or ending in a tar file, of the images")
    parser.add_argument("--split", metavar="NAME", help="split of SRC, if it has splits (default: train)")
    add_data_arguments(parser, "SRC")
    add_max_pixels(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from siglip_jax.search.embed import embed
    from siglip_jax.search.items import open_items
    from siglip_jax.search.making import ERRORS

    options = ("dtype", "quantization", "format", "shard", "part_size", "batch_size", "storage", "update", "max_pixels")
    keys = {name: getattr(arguments, name) for name in ("image_key", "split", "kind", "root", "columns")}
    output_path(arguments.out, "--out")  # a URL is refused before the source is read
    counted: list[int] = []
    try:
        items = open_items(arguments.source, **keys)
        say_left_out(arguments.source, items)
        with progress("items", rate=True) as shown:

            def on_progress(done: int, total: int) -> None:
                counted[:] = done, total
                shown(done, total)

            result = embed(
                items,
                arguments.out,
                arguments.model,
                **{name: getattr(arguments, name) for name in options},
                on_progress=on_progress,
                on_unreadable=report_unreadable,
            )
    except (KeyboardInterrupt, SystemExit):
        done = f"{counted[0]:,} of {counted[1]:,} items are done" if counted else "no item is done"
        say(f"stopped: {done} and kept in {arguments.out}; the same command resumes the run")
        raise
    facts: dict[str, Any] = {
        "out": arguments.out,
        "kind": result.kind,
        "items": result.items,
        "embedded": result.embedded,
        "unreadable": result.unreadable,
        "seconds": round(result.seconds, 3),
        "items_per_second": round((result.embedded + result.unreadable) / result.seconds, 1),
        "parts_left": result.parts_left,
        "complete": None if result.rows is None else {"rows": result.rows, "unreadable": result.all_unreadable},
    }
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts, result.out / ERRORS)
    return 2 if result.rows == 0 else 0


def _print(facts: dict[str, Any], errors: Path) -> None:
    rows = [(facts["kind"], f"{facts['items']:,}")]
    if done := facts["embedded"] + facts["unreadable"]:
        speed = f"{facts['seconds']:,.1f} seconds, {facts['items_per_second']:,.1f} a second"
        rows.append(("done now", f"{done:,} in {speed}"))
    if complete := facts["complete"]:
        if complete["unreadable"]:
            rows.append(("unreadable", f"{complete['unreadable']:,}, listed in {errors}"))
        rows.append(("complete", f"{complete['rows']:,} embeddings in {facts['out']}"))
    else:
        if facts["unreadable"]:
            rows.append(("unreadable now", f"{facts['unreadable']:,}"))
        rows.append(("left", f"{facts['parts_left']:,} parts, for other shards"))
    print_table(None, rows, 2)


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if found is None or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(f"a shard must be I/N with I from 0 to N - 1, got {text!r}; write 0/4")
    return int(found[1]), int(found[2])
