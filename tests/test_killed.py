"""Jobs that are killed while they write leave what was there, the whole result, or what is refused; nothing half."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.killed_at_events import JOBS

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_what_a_killed_job_leaves(name, tmp_path):
    command = [sys.executable, "-m", "tests.support.killed_at_events", name, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert json.loads(ran.stdout) >= 5, "times it was killed"
