"""Meshes of devices, sharding of parameters and batches, and programs of several processes."""

from siglip_jax.parallel.mesh import make_mesh
from siglip_jax.parallel.processes import global_batch, join_processes
from siglip_jax.parallel.sharding import SHARDING_RULES, shard_params, shardings

__all__ = ["SHARDING_RULES", "global_batch", "join_processes", "make_mesh", "shard_params", "shardings"]
