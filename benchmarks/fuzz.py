"""Reads mutants of every kind of file that the package reads, and prints what is answered as no reader may.

python benchmarks/fuzz.py --mutants 5000
python benchmarks/fuzz.py npz arrow --mutants 100000
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.fuzz import fuzz
from tests.support.fuzz_readers import READERS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"some of {', '.join(READERS)} (default: all)")
    parser.add_argument("--mutants", type=int, default=5000, metavar="N", help="mutants of each kind (default: 5000)")
    arguments = parser.parse_args()
    bad = 0
    for name in arguments.kinds or READERS:
        start = time.monotonic()
        failures = fuzz(name, arguments.mutants)
        bad += len(failures)
        print(f"{name}: {arguments.mutants} mutants, {len(failures)} failures, {time.monotonic() - start:.0f} seconds")
        for line in failures:
            print(f"  {line}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
