"""Two real processes, joined by `jax.distributed`, compute what one does."""

import json
from pathlib import Path

import numpy as np
import pytest

from siglip_jax.parallel import join_processes
from siglip_jax.parallel.processes import launched_with_others
from tests.support.processes import run

SCRIPT = Path(__file__).parents[1] / "support" / "two_processes.py"


def found(processes):
    return [json.loads(out.splitlines()[-1]) for out in run(SCRIPT, processes, timeout=600)]


@pytest.mark.slow
def test_loss_and_gradients_of_two_processes_are_those_of_one():
    (one,), two = found(1), found(2)
    for each in two:
        np.testing.assert_allclose(each["value"], one["value"], rtol=1e-6)
        np.testing.assert_allclose(each["alone"], one["value"], rtol=1e-6)
        for x, y in zip(each["gradients"], one["gradients"], strict=True):
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
    with pytest.raises(ValueError, match="must be given together, got 'localhost:1', None, 0"):
        join_processes("localhost:1", None, 0)
