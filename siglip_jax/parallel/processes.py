"""Several processes as one program: joining them, and making global arrays of what each has loaded."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from siglip_jax.parallel.mesh import BATCH_AXES, check_mesh

# For each launcher that `jax.distributed.initialize` knows: what it needs, and the number of processes.
_LAUNCHERS = (("SLURM_STEP_NODELIST", "SLURM_NTASKS"), ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE"))


def join_processes(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> bool:
    """Calls `jax.distributed.initialize` if asked to, or if this process was launched as one of several.

    Call it before anything else touches a device. Without arguments a program started alone stays alone; one started
    by Slurm, Open MPI or on a pod of TPUs joins the others.

    Args:
      coordinator_address: host:port of the first process.
      num_processes, process_id: how many there are, and which of them this is.

    Returns:
      Whether there are several processes.

    Raises:
      ValueError: if only some of the three are given.
    """
    given = (coordinator_address, num_processes, process_id)
    if any(x is not None for x in given):
        if any(x is None for x in given):
            raise ValueError(
                "coordinator_address, num_processes and process_id belong together; got"
                f" {coordinator_address!r}, {num_processes!r}, {process_id!r}"
            )
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    elif launched_with_others(environment) and not jax.distributed.is_initialized():
        jax.distributed.initialize()
    return jax.process_count() > 1


def launched_with_others(environment: Mapping[str, str]) -> bool:
    """Says whether the variables of a launcher name more than one process."""
    if any(needed in environment and environment.get(number, "1") != "1" for needed, number in _LAUNCHERS):
        return True
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment


def global_batch(local: Any, mesh: Mesh, axis: str | tuple[str, ...] = BATCH_AXES) -> Any:
    """Returns global arrays, cut over `axis` along their first dimension, of what each process has loaded.

    Args:
      local: a tree of arrays (examples of this process, ...), as many on every process.

    Raises:
      ValueError: if the examples of this process cannot be cut evenly over its devices, or the mesh has Explicit axes.
    """
    check_mesh(mesh)
    sharding = NamedSharding(mesh, PartitionSpec(axis))

    def place(x: Any) -> jax.Array:
        x = np.asarray(x)
        names = (axis,) if isinstance(axis, str) else axis
        parts = int(np.prod([mesh.shape[name] for name in names]))
        if len(x) * jax.process_count() % parts:
            raise ValueError(
                f"{len(x)} examples on each of {jax.process_count()} processes cannot be cut evenly over {parts} parts"
                f" along {', '.join(names)}; drop or repeat some"
            )
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(place, local)
