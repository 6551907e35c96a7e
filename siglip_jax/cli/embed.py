"""Embeds all pictures of a folder or data set, or all lines of a text file, into a directory of numbered parts.

SRC is a folder of pictures, tar shards, Parquet, Arrow, JSON lines or CSV beside pictures, or a .txt, a text a line. A
run may be stopped or killed at any time: the same command goes on. Items that cannot be read are reported on stderr and
listed in DIR/errors.jsonl; the exit status is 2 only if nothing could be read.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from siglip_jax.cli.output import QUANTIZATIONS, print_table, progress, say, whole_number

HELP = "embed many pictures or texts into a directory"
EPILOG = """examples:
  siglip-jax embed photos/ --out photos-embedded
  siglip-jax embed "shards/{000..099}.tar" --out embedded --model google/siglip-base-patch16-224 --format parquet
  siglip-jax embed shards/ --out embedded --shard 0/4   # and 1/4, 2/4, 3/4 on other machines or devices
  siglip-jax embed captions.txt --out captions-embedded
then: siglip-jax search photos-embedded "a cat" """.rstrip()

DTYPES = ("float32", "bfloat16", "float16")
STOPPED = 143  # the exit status of a program ended by SIGTERM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("source", metavar="SRC", help="folder, data set or text file")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory for the embeddings")
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="Hub name or directory (default: the embedded model)")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the computation (default: float32)")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="hold the matrices in 8 or 4 bits")
    parser.add_argument("--format", choices=("npy", "parquet"), help="of the parts (default: npy)")
    parser.add_argument("--shard", type=_shard, metavar="I/N", help="do the part of process I, from 0, of N")
    parser.add_argument("--part-size", type=whole_number, metavar="N", help="items of a part (default: 2048)")
    parser.add_argument("--batch-size", type=whole_number, metavar="N", help="items per step (default: by device)")
    parser.add_argument("--image-key", metavar="NAME", help="column or ending that holds the pictures")
    parser.add_argument("--split", metavar="NAME", help="part of SRC, where it has parts (default: train)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Does the job; returns the exit status."""
    from siglip_jax.inference.collection import ERRORS, embed_collection
    from siglip_jax.inference.items import open_items
    from siglip_jax.inference.loading import load
    from siglip_jax.inference.manifest import read_manifest

    items = open_items(arguments.source, image_key=arguments.image_key, split=arguments.split)
    siglip = load(arguments.model, dtype=arguments.dtype, quantization=arguments.quantization)
    model = arguments.model
    if model is not None and Path(model).exists():
        model = os.path.abspath(model)  # so that a search finds it from another directory
    start = time.monotonic()
    try:
        with _ended_by_sigterm(), _bar(items.kind) as on_progress:
            outcome = embed_collection(
                siglip,
                items,
                arguments.out,
                model_name=model,
                format=arguments.format,
                part_size=arguments.part_size,
                batch_size=arguments.batch_size,
                shard=arguments.shard,
                on_progress=on_progress,
                on_unreadable=_report,
            )
    except (KeyboardInterrupt, SystemExit):
        say(f"stopped; what is done is in {arguments.out}, and the same command goes on")
        raise
    seconds = time.monotonic() - start
    facts: dict[str, Any] = {
        "out": arguments.out,
        "kind": items.kind,
        "items": len(items),
        "embedded": outcome.embedded,
        "unreadable": outcome.unreadable,
        "seconds": round(seconds, 3),
        "items_per_second": round((outcome.embedded + outcome.unreadable) / seconds, 1),
        "parts_left": outcome.parts_left,
        "complete": None,
    }
    if not outcome.parts_left:
        done = read_manifest(Path(arguments.out)).done or {}
        facts["complete"] = {name: done[name] for name in ("rows", "unreadable")}
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts, Path(arguments.out) / ERRORS)
    return 2 if facts["complete"] and not facts["complete"]["rows"] else 0


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
        rows.append(("left", f"{facts['parts_left']:,} parts, for other shards to do"))
    print_table(None, rows, 2)


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if found is None or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 0 to N - 1, such as 0/4, found {text!r}")
    return int(found[1]), int(found[2])


def _report(name: str, error: str) -> None:
    say(error if name in error else f"{name}: {error}")


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields what to call with the items done and their total, which is known only then."""
    with contextlib.ExitStack() as stack:
        advance, before = None, 0

        def on_progress(done: int, total: int) -> None:
            nonlocal advance, before
            if advance is None:
                advance = stack.enter_context(progress(total, what, rate=True))
            advance(done - before)
            before = done

        yield on_progress


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Makes SIGTERM an exception, so that no half-written file stays."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(STOPPED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
