"""Meshes of devices, several processes, and the rules by which parameters are laid out."""

from siglip_jax.parallel.distributed import global_batch as global_batch
from siglip_jax.parallel.distributed import join_processes as join_processes
from siglip_jax.parallel.mesh import make_mesh as make_mesh
from siglip_jax.parallel.rules import shard_params as shard_params
