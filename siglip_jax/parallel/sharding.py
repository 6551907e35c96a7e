"""Sharding of parameters over a mesh by ordered rules, of which the first that matches a path wins.

Paths look like `encoder/layers_0/self_attn/q_proj/kernel`. A rule lists the mesh axes of the last dimensions, so that
it serves both stacked and separate layers. An axis that the mesh lacks, or that does not divide its dimension, is left
out.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from siglip_jax.parallel.mesh import BATCH_AXES, check_mesh
from siglip_jax.params import path_of
from siglip_jax.rules import Rules, match_rule

SHARDING_RULES: Rules[PartitionSpec] = (
    (r".*token_embedding/embedding", PartitionSpec(("tensor", "fsdp"), None)),  # (vocabulary, width)
    (r".*position_embedding/embedding", PartitionSpec(None, "fsdp")),  # (positions, width)
    (r".*patch_embedding/kernel", PartitionSpec("fsdp")),  # (row, column, channel, width) or (pixels, width)
    (r".*(q_proj|k_proj|v_proj|fc1)/kernel", PartitionSpec("fsdp", "tensor")),
    (r".*(q_proj|k_proj|v_proj|fc1)/bias", PartitionSpec("tensor")),
    (r".*(out_proj|fc2)/kernel", PartitionSpec("tensor", "fsdp")),
    (r".*(text_model/head|classifier|fc3)/kernel", PartitionSpec("fsdp", None)),
    (r".*prototypes", PartitionSpec("fsdp", "tensor")),  # (bottleneck, prototypes)
    (r".*", PartitionSpec()),  # norms, the other biases, the probe, temperature and bias: small, on every device
)
"""Default sharding of all parameters: pairs (pattern over the path, mesh axes of the last dimensions), of which the
first match wins. Kernels are (in, out): the first of two matrices is sharded over `tensor` by columns, the second by
rows."""


def partition(
    path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: Rules[PartitionSpec] = SHARDING_RULES
) -> PartitionSpec:
    """Returns the mesh axes over which each dimension of a parameter is sharded.

    Raises:
      ValueError: if no rule covers the path, or a rule has more dimensions than the parameter.
    """
    spec = match_rule(rules, path, "sharding rules")
    if len(spec) > len(shape):
        raise ValueError(f"sharding rule of {path} must have at most {len(shape)} dimensions, got {spec}")
    entries = [None] * (len(shape) - len(spec)) + list(spec)
    return PartitionSpec(*(_fitting(entry, size, mesh) for entry, size in zip(entries, shape, strict=True)))


def _fitting(entry: Any, size: int, mesh: Mesh | AbstractMesh) -> tuple[str, ...] | None:
    """Returns the axes of an entry of a rule that the mesh has and that divide the dimension; None without any."""
    axes = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
    kept: tuple[str, ...] = ()
    for axis in axes:
        if axis in mesh.shape and size % (math.prod(mesh.shape[a] for a in kept) * mesh.shape[axis]) == 0:
            kept += (axis,)
    return kept or None


def _warn_of_other_names(mesh: Mesh, rules: Rules[PartitionSpec]) -> None:
    """Warns of a mesh with none of the axes that the rules name, over which nothing would be sharded."""
    entries = [entry for _, spec in rules for entry in spec if entry is not None]
    named = {axis for entry in entries for axis in ((entry,) if isinstance(entry, str) else entry)}
    if named and mesh.size > 1 and not {*named, *BATCH_AXES}.intersection(mesh.axis_names):
        warnings.warn(
            f"the mesh has none of the axes {', '.join(sorted(named))} of the sharding rules, but"
            f" {', '.join(map(str, mesh.axis_names))}: every parameter is whole on every device; make the mesh with"
            " siglip_jax.make_mesh, or pass rules (sharding_rules of from_pretrained) with your names, as in"
            f" (('.*fc1/kernel', PartitionSpec(None, {mesh.axis_names[-1]!r})), ('.*', PartitionSpec()))",
            stacklevel=3,
        )


def shardings(
    shapes: Mapping[str, tuple[int, ...]], mesh: Mesh, rules: Rules[PartitionSpec] = SHARDING_RULES
) -> dict[str, NamedSharding]:
    """Returns the sharding of each parameter, by path.

    Args:
      shapes: shape of each parameter, by path.
      mesh: mesh to shard over.
      rules: pairs (pattern over the path of a parameter, mesh axes of its last dimensions), of which the first match
        wins.

    Returns:
      A `NamedSharding` for each path.

    Raises:
      ValueError: if no rule covers a path, or the mesh has Explicit axes.

    Example:
      >>> from siglip_jax.parallel import make_mesh
      >>> path = "text_model/encoder/layers_0/mlp/fc1/kernel"
      >>> shardings({path: (768, 3072)}, make_mesh())[path].spec == PartitionSpec(("fsdp",), ("tensor",))
      True
    """
    check_mesh(mesh)
    _warn_of_other_names(mesh, rules)
    return {path: NamedSharding(mesh, partition(path, shape, mesh, rules)) for path, shape in shapes.items()}


def shard_params(params: Mapping[str, Any], mesh: Mesh, rules: Rules[PartitionSpec] | None = None) -> dict[str, Any]:
    """Shards a tree of parameters over a mesh.

    Args:
      params: nested dict of numpy or jax arrays.
      mesh: mesh to shard over.
      rules: pairs (pattern over the path of a parameter, mesh axes of its last dimensions), of which the first match
        wins; None: `SHARDING_RULES`.

    Returns:
      The tree with jax arrays that are sharded over the mesh.

    Raises:
      ValueError: if no rule covers a path, or the mesh has Explicit axes.

    Example:
      >>> import numpy as np
      >>> from siglip_jax.parallel import make_mesh
      >>> mesh = make_mesh()
      >>> params = shard_params({"mlp": {"fc1": {"kernel": np.zeros((8, 32), np.float32)}}}, mesh)
      >>> params["mlp"]["fc1"]["kernel"].sharding.mesh == mesh
      True
    """

    def place(path: tuple[Any, ...], x: Any) -> jax.Array:
        name = path_of(path)
        return jax.device_put(x, shardings({name: tuple(x.shape)}, mesh, rules or SHARDING_RULES)[name])

    return jax.tree_util.tree_map_with_path(place, dict(params))
