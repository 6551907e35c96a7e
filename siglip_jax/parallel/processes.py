"""Programs of several processes: joining them, and global arrays of the examples that each has loaded."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from siglip_jax.parallel.mesh import BATCH_AXES, check_mesh

# For each launcher that `jax.distributed.initialize` knows: a variable it needs, and that of the number of processes.
_LAUNCHERS = (("SLURM_STEP_NODELIST", "SLURM_NTASKS"), ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE"))


def join_processes(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> bool:
    """Calls `jax.distributed.initialize` with the arguments given, or if a launcher started several processes.

    It must be called before anything else uses a device. Without arguments, a program that was started alone stays
    alone, and one that was started by Slurm, Open MPI or on a pod of TPUs joins the other processes.

    Args:
      coordinator_address: "host:port" of the first process; None: found from the launcher.
      num_processes: number of processes; None: found from the launcher.
      process_id: number of this process, from 0; None: found from the launcher.
      environment: environment variables in which a launcher is looked for.

    Returns:
      Whether the program has several processes.

    Raises:
      ValueError: if some of the first three arguments are given, but not all.

    Example:
      >>> join_processes(environment={})
      False
    """
    given = (coordinator_address, num_processes, process_id)
    if any(x is not None for x in given):
        if any(x is None for x in given):
            raise ValueError(
                "coordinator_address, num_processes and process_id must be given together, got"
                f" {coordinator_address!r}, {num_processes!r}, {process_id!r}"
            )
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    elif launched_with_others(environment) and not jax.distributed.is_initialized():
        jax.distributed.initialize()
    return jax.process_count() > 1


def launched_with_others(environment: Mapping[str, str]) -> bool:
    """Returns whether the variables of a launcher name more than one process."""
    if any(needed in environment and environment.get(number, "1") != "1" for needed, number in _LAUNCHERS):
        return True
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment


def global_batch(local: Any, mesh: Mesh, axis: str | tuple[str, ...] = BATCH_AXES) -> Any:
    """Returns global arrays made of the examples that each process has loaded.

    Args:
      local: tree of arrays (examples of this process, ...); every process has the same number of examples.
      mesh: mesh of the devices of all processes.
      axis: axis of the mesh over which the first dimension is sharded; a tuple for several axes.

    Returns:
      The tree with jax arrays (examples of all processes, ...), sharded over `axis`.

    Raises:
      ValueError: if the number of all examples is not a multiple of the shards, or the mesh has Explicit axes.

    Example:
      >>> from siglip_jax.parallel import make_mesh
      >>> mesh = make_mesh()
      >>> batch = global_batch({"input_ids": np.ones((2 * jax.device_count(), 16), np.int32)}, mesh)
      >>> batch["input_ids"].sharding.spec == PartitionSpec(("data", "fsdp"))
      True
    """
    check_mesh(mesh)
    sharding = NamedSharding(mesh, PartitionSpec(axis))

    def place(x: Any) -> jax.Array:
        x = np.asarray(x)
        names = (axis,) if isinstance(axis, str) else axis
        shards = int(np.prod([mesh.shape[name] for name in names]))
        if len(x) * jax.process_count() % shards:
            raise ValueError(
                f"batch size must be a multiple of the {shards} devices along {', '.join(names)}, got {len(x)} examples"
                f" on each of {jax.process_count()} processes; drop or repeat some"
            )
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(place, local)
