"""Meshes of devices, and the rules by which parameters are laid out on them."""

from siglip_jax.parallel.mesh import make_mesh as make_mesh
from siglip_jax.parallel.rules import shard_params as shard_params
