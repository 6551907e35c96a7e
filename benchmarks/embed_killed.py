"""`siglip-jax embed` killed twenty times: is every item embedded exactly once, with the bytes of an undisturbed run?

    python benchmarks/embed_killed.py [--items 100000] [--kills 20] [--part-size 2048] [--images] [--json]

Embeds that many different texts, or with --images small images, with the bundled model: once without interruption, and
once killed by SIGKILL at random moments and restarted each time. Rates are those of whole runs, start included. Exit
status 1 if anything differs.
"""

import argparse
import collections
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image

from siglip_jax.search.collection import open_collection
from siglip_jax.search.items import open_items
from siglip_jax.search.verify import verify_collection
from tests.support.killing import records, run_until_done


def write_items(folder: Path, count: int, images: bool) -> Path:
    """Writes texts, one per line, or images of 24 x 24 pixels; returns the file or folder."""
    if not images:
        file = folder / "texts.txt"
        file.write_text("".join(f"a photo of {i} cats and {i * 7919 % 10007} dogs\n" for i in range(count)))
        return file
    rng, home = np.random.default_rng(0), folder / "images"
    home.mkdir()
    for i in range(count):
        pixels = PIL.Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8)).resize((24, 24))
        pixels.save(home / f"{i:07}.png", compress_level=1)
    return home


def main() -> int:
    """Runs the benchmark, prints the results and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--part-size", type=int, default=2048)
    parser.add_argument("--images", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        source = write_items(home, options.items, options.images)
        seconds, killed = {}, {}
        for kind, kills in (("whole", 0), ("killed", options.kills)):
            command = [sys.executable, "-m", "siglip_jax", "embed", source, "--out", home / kind]
            command += ["--part-size", options.part_size]
            start = time.monotonic()
            # Kills within the time of one and a half parts, so on average between two parts or within one.
            parts = records(home / "whole") or 1
            longest = 1.5 * seconds.get("whole", 0.0) / parts
            killed[kind] = run_until_done(command, lambda out=home / kind: records(out), home / "cache", kills, longest)
            seconds[kind] = time.monotonic() - start
        expected, found = (
            {path.name: path.read_bytes() for path in (home / kind).iterdir()} for kind in ("whole", "killed")
        )
        opened, items = open_collection(home / "killed"), open_items(source)
        ids = collections.Counter(name for part in range(opened.manifest.parts) for name in opened.ids(part))
        facts = {
            "items": options.items,
            "parts": opened.manifest.parts,
            "kills": killed["killed"],
            "every item exactly once": ids == {items.name(i): 1 for i in range(len(items))},
            "every byte of every file equal": expected == found,
            "checksums right": verify_collection(home / "killed") == [],
            "whole run, items/s": round(options.items / seconds["whole"], 1),
            "killed run, items/s": round(options.items / seconds["killed"], 1),
        }
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        for fact, value in facts.items():
            print(f"{fact:<32} {value}")
    right = facts["kills"] == options.kills and all(value is not False for value in facts.values())
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
