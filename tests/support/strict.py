"""Settings of every test, made when this is imported: strict types and ranks, eight devices, no caches, no Hub."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The user's own folder of compiled code is none of the tests' business, nor of the processes that they start.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
# One thread per device, the default, is too few: each may wait in a collective that another device has not reached, and
# XLA ends the process after 40 seconds.
os.environ.setdefault("PJRT_NPROC", "64")

import jax

jax.config.update("jax_enable_compilation_cache", False)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
