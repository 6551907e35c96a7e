"""Freed memory stays with the process: later runs of a program on a CPU meet no page for the first time."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only glibc's allocator is told to keep memory")

FAULTS = """
import resource
import jax, jax.numpy as jnp
from siglip_jax.training import keep_freed_memory

if {keep}:
    keep_freed_memory()
    keep_freed_memory()  # again changes nothing
make = jax.jit(lambda x: jnp.full((64, 1 << 20), x))  # 256 MiB, in a thread of JAX unless told otherwise
counts = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    make(1.0).block_until_ready()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(counts[1:]))  # an array that JAX frees too late for the next run costs that one its pages
"""


def faults(keep: bool, **environment: str) -> int:
    """Returns the fewest page faults of a program when it runs again: about one or more per 2 MiB of new memory."""
    code = FAULTS.format(keep=keep)
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return int(ran.stdout)


def test_later_steps_meet_no_new_pages():
    assert faults(keep=True) < 32 < 64 < faults(keep=False)


def test_what_the_user_has_set_stays():
    assert faults(keep=True, GLIBC_TUNABLES="glibc.malloc.hugetlb=0") > 64
