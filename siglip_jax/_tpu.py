"""Settings of libtpu, the compiler of TPUs, on a machine that has none."""

import glob
import os
from collections.abc import MutableMapping, Sequence

_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")  # what a machine with TPUs has

# Without them libtpu asks the network for a TPU's neighbours, writes lines about that to stderr, and refuses to be
# loaded by two processes.
_NOWHERE = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def has_tpu(devices: Sequence[str] = _DEVICES) -> bool:
    """Returns whether this machine has TPUs.

    Args:
      devices: patterns of files, of which a machine with TPUs has some.
    """
    return any(glob.glob(pattern) for pattern in devices)


def describe_no_tpu(environment: MutableMapping[str, str] = os.environ, devices: Sequence[str] = _DEVICES) -> None:
    """Sets the variables with which libtpu compiles without a TPU and says nothing; none on a machine that has one.

    Args:
      environment: environment variables to set; those that are set already stay.
      devices: patterns of files, of which a machine with TPUs has some.
    """
    if not has_tpu(devices):
        for name, value in _NOWHERE.items():
            environment.setdefault(name, value)
