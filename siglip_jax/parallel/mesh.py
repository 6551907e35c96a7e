"""The mesh of devices that models and losses run on."""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # those over which examples are cut


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Returns a mesh of all devices with the axes `data`, `fsdp` and `tensor`.

    Its axes are of type Auto: on Explicit ones, today's default of `jax.make_mesh`, linen's modules fail.

    Args:
      data: devices that hold different examples; -1: as many as the others leave.
      fsdp: devices that hold different examples and different parts of each parameter.
      tensor: devices that hold different parts of each layer's width.

    Raises:
      ValueError: if the product is not the number of devices.
    """
    devices = jax.devices()
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"data, fsdp and tensor must be positive, one of them -1, got {data}, {fsdp}, {tensor}")
    if -1 in sizes:
        others = -math.prod(sizes)
        sizes[sizes.index(-1)] = len(devices) // others
    if math.prod(sizes) != len(devices):
        named = " x ".join(f"{name}={size}" for name, size in zip(AXES, (data, fsdp, tensor), strict=True))
        raise ValueError(f"a mesh must take all {len(devices)} devices, got {named}; change one of them, or use -1")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=np.asarray(devices).tolist())


def batch_shares(mesh: Mesh | None) -> int:
    """Returns in how many parts a mesh cuts a batch; one where there is none."""
    return 1 if mesh is None else math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)


def keep_batch_cut(x: Array, mesh: Mesh | None) -> Array:
    """Says to XLA that the first dimension of an array stays cut over `data` and `fsdp`, where the mesh has them.

    It does not find that out about a scan over layers that are cut over `fsdp` themselves, and then holds the
    activations of the whole batch on every device.

    Args:
      mesh: unless `jax.set_mesh` has set one; inside `shard_map` and `pmap` nothing is said.
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


def check_mesh(mesh: Mesh) -> None:
    """Refuses a mesh that linen's modules cannot run on.

    Raises:
      ValueError: if an axis is of type Explicit.
    """
    if AxisType.Explicit in mesh.axis_types:
        raise ValueError(
            f"expected a mesh of Auto axes, found {mesh.axis_types}; linen fails on Explicit ones: use"
            " siglip_jax.make_mesh, or pass axis_types=(jax.sharding.AxisType.Auto, ...) to jax.make_mesh"
        )
