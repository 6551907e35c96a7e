"""500 mutants of every kind of file: read, or refused in one line that names the file, within limits.

`benchmarks/fuzz.py` reads 5,000 of each, or as many as it is told.
"""

import json
import random
import subprocess
import sys

import pytest

from tests.support import fuzz as harness
from tests.support.fuzz import Reader, complaint, fuzz, mutated, mutated_json
from tests.support.fuzz_readers import READERS


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_mutants(name):
    assert fuzz(name, 500) == []


def refuse(error):
    def read(home):
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda home: None, None),
        (refuse(ValueError("a.json: broken")), None),
        (refuse(FileNotFoundError(2, "gone", "HOME/a.json")), None),
        (refuse(KeyError("a.json")), "KeyError: 'a.json'"),
        (refuse(KeyboardInterrupt()), "KeyboardInterrupt: "),
        (refuse(ValueError("broken")), "message without the file: 'broken'"),
        (refuse(ValueError("a.json:\nbroken")), "message of 14 characters in 2 lines"),
        (refuse(ValueError("a.json" + "x" * 400)), "message of 406 characters in 1 lines"),
        (lambda home: bytearray(b"x") * 2**26, "bytes of memory for a file of 2"),
    ],
)
def test_the_harness_sees_every_kind_of_failure(read, expected, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    found = complaint(Reader(lambda home: [], read), tmp_path, tmp_path / "a.json")
    assert found is None if expected is None else expected in str(found)


ENDLESS = """
import pathlib, signal, sys
from tests.support import fuzz

def read(home):
    while True:
        pass

fuzz.SECONDS = 0.1
signal.signal(signal.SIGPROF, fuzz._too_long)
home = pathlib.Path(sys.argv[1])
print(fuzz.complaint(fuzz.Reader(lambda home: [], read), home, home / "a.json"))
"""


def test_the_harness_sees_what_does_not_end(tmp_path):
    # In a process of its own, as the mutants are: a signal that comes late must not meet another test.
    (tmp_path / "a.json").write_text("{}")
    command = [sys.executable, "-c", ENDLESS, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=harness.ROOT, timeout=120)
    assert (ran.stdout, ran.stderr) == ("more than 0.1 seconds\n", "")


def test_mutants_are_the_same_in_every_run_and_differ():
    data = json.dumps({"a": [1, {"b": "c"}], "d": None}).encode()
    made = [change(data, random.Random(i)) for change in (mutated, mutated_json) for i in range(200)]
    assert made == [change(data, random.Random(i)) for change in (mutated, mutated_json) for i in range(200)]
    assert len(set(made)) > 300 and sum(one == data for one in made) < 20
