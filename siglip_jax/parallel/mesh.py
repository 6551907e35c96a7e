"""Meshes of devices for models and losses."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # axes over which a batch is sharded


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Returns a mesh of all devices with the axes `data`, `fsdp` and `tensor`.

    Its axes are of type Auto: linen modules fail on axes of type Explicit, the current default of `jax.make_mesh`.

    Args:
      data: number of devices over which the batch alone is sharded; -1: all devices that the other axes leave.
      fsdp: number of devices over which both the batch and each parameter are sharded; -1: all devices that the other
        axes leave.
      tensor: number of devices over which the width of each layer is sharded; -1: all devices that the other axes
        leave.

    Returns:
      A mesh of shape (data, fsdp, tensor).

    Raises:
      ValueError: if the product of the sizes is not the number of devices, or several of them are -1.

    Example:
      >>> mesh = make_mesh()
      >>> mesh.axis_names, mesh.shape["data"] == jax.device_count()
      (('data', 'fsdp', 'tensor'), True)
    """
    return mesh_over(jax.devices(), data, fsdp, tensor)


def mesh_over(devices: Sequence[Any], data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Returns a mesh of the devices given, which may be described ones, as `make_mesh` does of all."""
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(
            f"data, fsdp and tensor must be positive, at most one of them -1, got {data}, {fsdp}, {tensor}"
        )
    if -1 in sizes:
        others = -math.prod(sizes)
        sizes[sizes.index(-1)] = len(devices) // others
    if math.prod(sizes) != len(devices):
        named = " x ".join(f"{name}={size}" for name, size in zip(AXES, (data, fsdp, tensor), strict=True))
        raise ValueError(f"mesh must have all {len(devices)} devices, got {named}; change one of them, or use -1")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=list(devices))


def batch_shards(mesh: Mesh | None) -> int:
    """Returns the number of shards of a batch over a mesh; 1 without a mesh."""
    return 1 if mesh is None else math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)


def platform_of(mesh: Mesh | None) -> str:
    """Returns JAX's name of the platform of a mesh, such as "cpu"; without a mesh, that of the default device."""
    device = jax.config.jax_default_device  # type: ignore[missing-attribute]
    if mesh is not None:
        device = mesh.devices.flat[0]
    return device if isinstance(device, str) else (device or jax.devices()[0]).platform


def keep_batch_sharded(x: Array, mesh: Mesh | None) -> Array:
    """Constrains the first dimension of an array to stay sharded over `data` and `fsdp`, where the mesh has them.

    XLA does not infer this for a scan over layers that are themselves sharded over `fsdp`, and without the constraint
    holds the activations of the whole batch on every device.

    Args:
      x: array with a leading axis of examples.
      mesh: mesh to use unless `jax.set_mesh` has set one. Inside `shard_map` and `pmap` the array is returned as it is.
    """
    current = jax.sharding.get_abstract_mesh()
    over = mesh if current.empty else current
    if over is None:
        return x
    kinds = dict(zip(over.axis_names, over.axis_types, strict=True))
    axes = tuple(axis for axis in BATCH_AXES if kinds.get(axis) == AxisType.Auto)
    if not axes or len(x) % math.prod(over.shape[axis] for axis in axes):
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(over, PartitionSpec(axes)))


def check_sharding(x: ArrayLike) -> None:
    """Refuses an array that is sharded over Explicit axes, on which linen modules fail inside a matrix product.

    Raises:
      ValueError: if an axis over which the array is sharded is of type Explicit.
    """
    sharding = jax.typeof(x).sharding
    if any(entry is not None for entry in sharding.spec):
        check_mesh(sharding.mesh)


def check_mesh(mesh: Mesh | AbstractMesh) -> None:
    """Refuses a mesh on which linen modules fail.

    Raises:
      ValueError: if an axis is of type Explicit.
    """
    if AxisType.Explicit in mesh.axis_types:
        raise ValueError(
            f"mesh must have Auto axes, since linen fails on Explicit ones, got {mesh.axis_types}; use"
            " siglip_jax.make_mesh, or pass axis_types=(jax.sharding.AxisType.Auto, ...) to jax.make_mesh"
        )
