"""An H100 that is not there: its compiler needs only this description of it, and the wheels of CUDA."""

from typing import Any

# What `target_config` of an H100 with 80 GB holds.
DESCRIPTION = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32
  shared_memory_per_block: 49152  shared_memory_per_core: 233472  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048  core_count: 132  fpus_per_core: 128
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  clock_rate_ghz: 1.98  device_memory_size: 84978434048
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# Without a device nothing can be tried out, and Triton's products then find no sizes of tiles.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0"}


def device() -> Any:
    """Returns the device; jax must have been imported with `ENVIRONMENT`."""
    from jax.experimental import topologies

    return topologies.get_topology_desc("", "cuda", target_config=DESCRIPTION, topology="1x1x1").devices[0]
