"""500 mutants of every kind of file: read, or refused in one line that names the file, within limits.

`benchmarks/fuzz.py` reads 5,000 of each, or as many as it is told.
"""

import json
import random
import signal
from pathlib import Path

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


def test_the_harness_sees_what_does_not_end(tmp_path, monkeypatch):
    def read(home: Path) -> None:
        while True:
            pass

    monkeypatch.setattr(harness, "SECONDS", 0.1)
    before = signal.signal(signal.SIGPROF, harness._too_long)
    try:
        (tmp_path / "a.json").write_text("{}")
        assert complaint(Reader(lambda home: [], read), tmp_path, tmp_path / "a.json") == "more than 0.1 seconds"
    finally:
        signal.signal(signal.SIGPROF, before)


def test_mutants_are_the_same_in_every_run_and_differ():
    data = json.dumps({"a": [1, {"b": "c"}], "d": None}).encode()
    made = [change(data, random.Random(i)) for change in (mutated, mutated_json) for i in range(200)]
    assert made == [change(data, random.Random(i)) for change in (mutated, mutated_json) for i in range(200)]
    assert len(set(made)) > 300 and sum(one == data for one in made) < 20
