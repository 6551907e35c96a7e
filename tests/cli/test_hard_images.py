"""Every command over one folder of hard image files: they agree on what is read and what is not, and say so."""

import json
import re
import sys
from pathlib import Path

import pytest

from siglip_jax.search import open_collection
from tests.support.hard_images import LEFT_OUT, READ, UNREADABLE, write_hard_images
from tests.support.images import encoded, smooth

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 need Linux"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes, the first of which holds the hard files."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("hard", "plain"):
        (folder / name).mkdir()
    (folder / "plain" / "a.png").write_bytes(encoded(smooth(32, 32), "PNG"))
    return folder


@pytest.fixture(scope="module")
def outcomes(data: Path) -> dict[str, str]:
    return write_hard_images(data / "hard")


def of(outcomes: dict[str, str], outcome: str) -> list[str]:
    return sorted(name for name, found in outcomes.items() if found == outcome)


def unreadable(lines: str) -> list[str]:
    """Returns the files that a line of stderr, which may begin with their folder, says are unreadable."""
    causes = "image must|data must|an image in HEIF|no such image|levels of symbolic links"
    broken = rf"siglip-jax: (?:.*hard/)?([\w ]+\.\w+): .*(?:{causes})"
    return sorted(match[1] for match in map(re.compile(broken).match, lines.splitlines()) if match)


def left_out(lines: str) -> int:
    (line,) = [line for line in lines.splitlines() if "left out" in line]
    found = re.search(r"(\d+) files are left out: 2 not images \([^)]*notes\.txt", line)
    assert found is not None, line
    return int(found[1])


def test_classify(run, checkpoint, data, outcomes):
    ran = run("classify", data / "hard", "--recursive", "--labels", "a", "b", "--model", checkpoint, "--json")
    assert ran.status == 2
    read = [entry["image"].removeprefix(f"{data}/hard/") for entry in json.loads(ran.out)]
    assert read == of(outcomes, READ)
    assert unreadable(ran.err) == of(outcomes, UNREADABLE)
    assert left_out(ran.err) == len(of(outcomes, LEFT_OUT))
    assert "Warning" not in ran.err and "warnings.warn" not in ran.err


def test_embed(run, checkpoint, data, outcomes, tmp_path):
    ran = run("embed", data / "hard", "--out", tmp_path / "out", "--model", checkpoint, "--json")
    assert ran.status == 0
    collection = open_collection(tmp_path / "out")
    assert sorted(collection.ids(0)) == of(outcomes, READ)
    counts = {"rows": len(of(outcomes, READ)), "unreadable": len(of(outcomes, UNREADABLE))}
    assert json.loads(ran.out)["complete"] == counts
    assert unreadable(ran.err) == of(outcomes, UNREADABLE)
    assert left_out(ran.err) == len(of(outcomes, LEFT_OUT))


def test_eval(run, checkpoint, data, outcomes):
    ran = run("eval", "zero-shot", data, "--model", checkpoint, "--json")
    assert ran.status == 0
    facts = json.loads(ran.out)
    assert facts["examples"] == len(of(outcomes, READ)) + 1
    assert facts["unreadable"] == len(of(outcomes, UNREADABLE))
    assert unreadable(ran.err) == of(outcomes, UNREADABLE)
    assert left_out(ran.err) == len(of(outcomes, LEFT_OUT))


def test_train_as_a_dry_run(run, checkpoint, data, outcomes, tmp_path):
    command = ("train", "classification", "--data", data, "--model", checkpoint, "--out", tmp_path / "run")
    ran = run(*command, "--dry-run", "--batch-size", "8", "--json")
    assert ran.status == 0
    facts = json.loads(ran.out)
    assert facts["tried"] == facts["examples"] == len(of(outcomes, READ)) + len(of(outcomes, UNREADABLE)) + 1
    assert len(facts["unreadable"]) == len(of(outcomes, UNREADABLE))
    assert unreadable(ran.err) == of(outcomes, UNREADABLE)
    assert left_out(ran.err) == len(of(outcomes, LEFT_OUT))
