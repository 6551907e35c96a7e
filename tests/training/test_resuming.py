"""A run that is killed, also while it saves, ends with the bits of one that was not, having seen the same batches."""

import numpy as np
import pytest

from tests.support.pairs import write_pairs
from tests.support.tiny_checkpoint import write_checkpoint
from tests.support.training_run import run_until_done

pytestmark = pytest.mark.slow

STEPS, KILLS = 40, 3


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A model, data, compiled programs, and the uninterrupted run."""
    home = tmp_path_factory.mktemp("killed")
    model, data = write_checkpoint(home / "model", text_length=16), write_pairs(home / "pairs", 1)
    assert run_until_done((model, data, home / "whole", 0, STEPS), home / "cache") == 0
    return home, model, data


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_runs_end_like_the_whole_one(setting, workers):
    home, model, data = setting
    out = home / f"killed-{workers}"
    # Each time it lives a little longer than it takes to save: most of these moments lie in or beside a save.
    killed = run_until_done((model, data, out, workers, STEPS), home / "cache", KILLS, longest=0.6, seed=workers)
    assert killed == KILLS
    with np.load(home / "whole" / "final.npz") as whole, np.load(out / "final.npz") as found:
        assert whole.files == found.files
        for name in whole.files:
            np.testing.assert_array_equal(found[name], whole[name], name)
    lines = (home / "whole" / "seen.txt").read_text().splitlines()
    batches = dict(line.split() for line in lines)
    assert len(set(batches.values())) == len(lines) >= STEPS
    seen = [line.split() for line in (out / "seen.txt").read_text().splitlines()]
    assert all(batches.get(step, digest) == digest for step, digest in seen)
    assert {int(step) for step, _ in seen} >= set(range(STEPS))
    assert (out / "log.jsonl").read_text().count('"step": 40,') == 1
