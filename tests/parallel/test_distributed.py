"""Two real processes, joined by `jax.distributed`, compute what one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from siglip_jax.parallel import join_processes
from siglip_jax.parallel.distributed import launched_with_others

SCRIPT = Path(__file__).parent / "two_processes.py"


def run(processes):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    commands = [[sys.executable, str(SCRIPT), str(processes), str(i), str(port)] for i in range(processes)]
    path = os.pathsep.join([str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")])
    started = [
        subprocess.Popen(
            c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
        )
        for c in commands
    ]
    try:
        ended = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, ended, strict=True):
        assert process.returncode == 0, errors[-2000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]


def test_loss_and_gradients_of_two_processes_are_those_of_one():
    (one,), two = run(1), run(2)
    for found in two:
        np.testing.assert_allclose(found["value"], one["value"], rtol=1e-6)
        np.testing.assert_allclose(found["alone"], one["value"], rtol=1e-6)
        for x, y in zip(found["gradients"], one["gradients"], strict=True):
            assert np.abs(np.subtract(x, y)).max() <= 1e-6 * np.abs(y).max()


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4"}, False),  # inside an allocation, but not launched by srun
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "node[1-4]"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "node1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1;tcp://10.0.0.1:1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.1"}, True),
    ],
)
def test_a_program_joins_others_only_if_launched_with_them(environment, several):
    assert launched_with_others(environment) is several


def test_what_names_the_others_belongs_together():
    assert not join_processes(environment={})
    with pytest.raises(ValueError, match="belong together; got 'localhost:1', None, 0"):
        join_processes("localhost:1", None, 0)
