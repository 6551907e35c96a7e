"""Ordered rules that say how parameters are laid out over a mesh: the first pattern that fits a path decides.

Paths are as in `encoder/layers_0/self_attn/q_proj/kernel`. A rule gives the axes of the last dimensions, so that one
rule serves layers that are stacked and layers that are not. An axis that does not divide its dimension, or that the
mesh does not have, is left out.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from siglip_jax.parallel.mesh import check_mesh
from siglip_jax.params import path_of
from siglip_jax.rules import Rules, match_rule

# kernels are (in, out): the first of two matrices is cut by columns over `tensor`, the second by rows.
SHARDING_RULES: Rules[PartitionSpec] = (
    (r".*token_embedding/embedding", PartitionSpec(("tensor", "fsdp"), None)),  # (vocabulary, width)
    (r".*position_embedding/embedding", PartitionSpec(None, "fsdp")),  # (positions, width)
    (r".*patch_embedding/kernel", PartitionSpec("fsdp")),  # (row, column, channel, width) or (pixels, width)
    (r".*(q_proj|k_proj|v_proj|fc1)/kernel", PartitionSpec("fsdp", "tensor")),
    (r".*(q_proj|k_proj|v_proj|fc1)/bias", PartitionSpec("tensor")),
    (r".*(out_proj|fc2)/kernel", PartitionSpec("tensor", "fsdp")),
    (r".*(text_model/head|classifier)/kernel", PartitionSpec("fsdp", None)),
    (r".*", PartitionSpec()),  # norms, the other biases, the probe, temperature and bias: small, on every device
)


def partition(
    path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: Rules[PartitionSpec] = SHARDING_RULES
) -> PartitionSpec:
    """Returns the axes that each dimension of a parameter is cut over.

    Raises:
      ValueError: if no rule covers the path, or a rule has more dimensions than the parameter.
    """
    spec = match_rule(rules, path, "sharding rules")
    if len(spec) > len(shape):
        raise ValueError(f"the sharding rule of {path} has {len(spec)} dimensions, the parameter {len(shape)}")
    entries = [None] * (len(shape) - len(spec)) + list(spec)
    return PartitionSpec(*(_fitting(entry, size, mesh) for entry, size in zip(entries, shape, strict=True)))


def _fitting(entry: Any, size: int, mesh: Mesh | AbstractMesh) -> tuple[str, ...] | None:
    axes = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
    kept: tuple[str, ...] = ()
    for axis in axes:
        if axis in mesh.shape and size % (math.prod(mesh.shape[a] for a in kept) * mesh.shape[axis]) == 0:
            kept += (axis,)
    return kept or None


def shardings(
    shapes: Mapping[str, tuple[int, ...]], mesh: Mesh, rules: Rules[PartitionSpec] = SHARDING_RULES
) -> dict[str, NamedSharding]:
    """Returns where each parameter lies, by path.

    Raises:
      ValueError: if a path is not covered, or the mesh has Explicit axes.
    """
    check_mesh(mesh)
    return {path: NamedSharding(mesh, partition(path, shape, mesh, rules)) for path, shape in shapes.items()}


def shard_params(params: Mapping[str, Any], mesh: Mesh, rules: Rules[PartitionSpec] | None = None) -> dict[str, Any]:
    """Lays a tree of parameters out over a mesh.

    Args:
      rules: (pattern over the path, axes of the last dimensions), first match wins; None: `SHARDING_RULES`.

    Raises:
      ValueError: if a path is not covered, or the mesh has Explicit axes.
    """

    def place(path: tuple[Any, ...], x: Any) -> jax.Array:
        name = path_of(path)
        return jax.device_put(x, shardings({name: tuple(x.shape)}, mesh, rules or SHARDING_RULES)[name])

    return jax.tree_util.tree_map_with_path(place, dict(params))
