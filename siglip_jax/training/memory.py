"""Memory that this machine has, as far as the system tells."""

import os

import jax


def host_memory() -> int | None:
    """Returns the memory of this machine in bytes; None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows, and systems without these names
        return None


def device_memory() -> int | None:
    """Returns the memory of a device in bytes, on a CPU that of the machine; None where the backend does not tell."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return host_memory()
    return (device.memory_stats() or {}).get("bytes_limit")
