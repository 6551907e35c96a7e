"""Mutants of every kind of file that the package reads, read in a child process under limits.

A reader may read a mutant, or refuse it with a `ValueError` or `OSError` of one line under 400 characters that names
the file or its folder. It may take 5 seconds of CPU time, and three times the size of the file and `SLACK` of memory.
Everything else, and what ends the process, is a failure. `benchmarks/fuzz.py` reads more mutants than the tests.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
LONGEST = 400  # characters of a message
SECONDS = 5  # of CPU time
SLACK = 32 * 2**20  # bytes: what libraries take at their first use, and pages of the allocator


class Reader(NamedTuple):
    """A kind of file: what makes the files, and what reads them.

    Attributes:
      make: fills an empty folder, and returns the files to mutate, one after the other.
      read: reads the folder.
      memory: bytes that reading may take beside the share of the size of the file.
    """

    make: Callable[[Path], list[Path]]
    read: Callable[[Path], Any]
    memory: int = SLACK


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Returns data with a few bits, bytes or slices changed, added, removed, or cut off."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(len(changed) + 1) if draw.random() < 0.3 else draw.randrange(min(len(changed), 2000) + 1)
        kind = draw.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[at:at] = draw.randbytes(draw.choice([1, 8, 100]))
        elif kind == 2:
            del changed[at : at + draw.choice([1, 8, 500])]
        elif kind == 3:
            changed[at : at + 8] = draw.choice([b"\xff" * 8, b"\x00" * 8, b"9" * 8, b"-1", b"[[[[", b'"', b"{}"])
        elif draw.random() < 0.2:
            del changed[at:]
        if not changed:
            break
    return bytes(changed)


STRANGE = (
    None,
    True,
    0,
    -1,
    2**63,
    1e308,
    float("nan"),
    "",
    "x" * 2000,
    "../x",
    "\ud83d",
    [],
    [[]],
    [None] * 3,
    {},
    {"a": {}},
)


def mutated_json(data: bytes, draw: random.Random) -> bytes:
    """Returns JSON with one value replaced by one of another type or size, or mutated bytes."""
    if draw.random() < 0.3:
        return mutated(data, draw)
    lines = data.decode().splitlines() if data.count(b"\n{") else [data.decode()]
    at = draw.randrange(len(lines))
    whole = json.loads(lines[at])
    places = list(_places(whole))
    parent, key = draw.choice(places) if places else ([whole], 0)
    action = draw.randrange(8)
    if action == 0 and isinstance(parent, dict):
        del parent[key]
    elif action == 1 and isinstance(parent, dict):
        parent[draw.choice(("x" * 300, "", "a\nb", "__class__"))] = parent[key]
    else:
        parent[key] = draw.choice(STRANGE)
    lines[at] = json.dumps(whole if places else parent[0])
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields (container, key) of every value within another."""
    keys: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


class TooLong(BaseException):
    """A read took more CPU time than a reader may."""


def _too_long(number: int, frame: Any) -> None:
    raise TooLong


def _peak(*, reset: bool = False) -> int:
    """Returns the peak of the resident memory in bytes; resets it first to the present size if asked."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def complaint(reader: Reader, home: Path, file: Path) -> str | None:
    """Returns what is wrong with how a reader answers to a file; None if nothing is."""
    before, size = _peak(reset=True), file.stat().st_size
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        reader.read(home)
    except (ValueError, OSError) as error:
        said = str(error)
        if "\n" in said or len(said) >= LONGEST:
            return f"message of {len(said)} characters in {said.count(chr(10)) + 1} lines: {said[:200]!r}"
        if str(home) not in said and file.name not in said:
            return f"message without the file: {said!r}"
    except TooLong:
        return f"more than {SECONDS} seconds"
    except BaseException as error:  # PanicException of pyo3 is none of Exception
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    taken = _peak() - before
    if taken > 3 * size + reader.memory:
        return f"{taken:,} bytes of memory for a file of {size:,}"
    return None


def run_child(name: str, home: Path, first: int, count: int, progress: Path) -> None:
    """Reads mutants `first` to `count`, and prints a line of JSON for each failure."""
    from tests.support.fuzz_readers import READERS

    signal.signal(signal.SIGPROF, _too_long)
    reader = READERS[name]
    files = reader.make(home)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    reader.read(home)  # the first time takes more memory
    if found := complaint(reader, home, files[0]):
        raise RuntimeError(f"{name}: the files that were made must be read, got {found}")
    with progress.open("w") as at:
        for i in range(first, count):
            os.pwrite(at.fileno(), f"{i:12}".encode(), 0)
            draw, file = random.Random(f"{name} {i}"), files[i % len(files)]
            change = mutated_json if file.suffix in (".json", ".jsonl") or file.name == ".zarray" else mutated
            file.write_bytes(change(before[file], draw))
            if found := complaint(reader, home, file):
                print(json.dumps([i, file.name, found]), flush=True)
            for path in home.rglob("*"):  # what reading has made, such as an index
                if path.is_file() and path not in before:
                    path.unlink()
            for path, data in before.items():
                if not path.exists() or path.read_bytes() != data:
                    path.write_bytes(data)
        os.pwrite(at.fileno(), f"{count:12}".encode(), 0)


def fuzz(name: str, count: int) -> list[str]:
    """Returns a line for each mutant of a kind of file that its reader does not answer as it must.

    Args:
      name: name of the reader, a key of `READERS`.
      count: number of mutants.
    """
    failures, first = [], 0
    work = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        while first < count:
            home = work / f"files-{first}"
            home.mkdir()
            command = [sys.executable, "-m", "tests.support.fuzz", name, str(home), str(first), str(count)]
            ran = subprocess.run([*command, str(work / "at")], capture_output=True, text=True, cwd=ROOT)
            failures += [" ".join(map(str, json.loads(line))) for line in ran.stdout.splitlines()]
            at = int((work / "at").read_text()) if (work / "at").exists() else first
            if ran.returncode == 0:
                break
            if ran.returncode > 0:
                raise RuntimeError(ran.stderr[-2000:])
            failures.append(f"{at} ended the process by {signal.Signals(-ran.returncode).name}")
            first = at + 1
            shutil.rmtree(home)
    finally:
        shutil.rmtree(work)
    return failures


if __name__ == "__main__":
    run_child(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
