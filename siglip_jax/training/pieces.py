"""Rows of a batch in pieces, an equal share of each device's rows in each, so that no row moves between devices."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from siglip_jax.parallel.mesh import BATCH_AXES, batch_shards


def split(x: Array, pieces: int, mesh: Mesh | None) -> Array:
    """Reshapes (rows, ...) to (pieces, rows / pieces, ...).

    Args:
      x: array with a row for an example, sharded over the mesh by row.
      pieces: number of pieces.
      mesh: mesh over whose `data` and `fsdp` axes rows are sharded; None: one device.

    Raises:
      ValueError: if the rows are not a multiple of devices and pieces.
    """
    devices = batch_shards(mesh)
    if len(x) % (devices * pieces):
        raise ValueError(
            f"the rows of a batch must be a multiple of {devices} devices x {pieces} micro-batches, got {len(x)};"
            " change batch_size or micro_batches"
        )
    x = x.reshape(devices, pieces, -1, *x.shape[1:]).swapaxes(0, 1)
    return kept(x.reshape(pieces, -1, *x.shape[3:]), mesh, None, BATCH_AXES)


def join(x: Array, mesh: Mesh | None) -> Array:
    """The inverse of `split`.

    Args:
      x: array of pieces of rows.
      mesh: mesh over whose `data` and `fsdp` axes rows are sharded; None: one device.
    """
    pieces, devices = len(x), batch_shards(mesh)
    x = x.reshape(pieces, devices, -1, *x.shape[2:]).swapaxes(0, 1)
    return kept(x.reshape(-1, *x.shape[3:]), mesh, BATCH_AXES)


def kept(x: Array, mesh: Mesh | None, *spec: Any) -> Array:
    """Constrains the sharding of an array on a mesh.

    Args:
      x: any array.
      mesh: mesh of the constraint; None: there is none.
      *spec: axes of the mesh for each dimension.
    """
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))
