"""Machines that programs are compiled for without being there: names, facts of their chips, and descriptions."""

import contextlib
import dataclasses
import importlib.metadata
import re
from typing import Any

import jax
from jax.experimental import topologies

from siglip_jax._optional import import_optional
from siglip_jax._tpu import describe_no_tpu


@dataclasses.dataclass(frozen=True)
class Chip:
    """Facts of a chip, as published by its maker unless stated otherwise.

    Attributes:
      name: name of the generation, as in "v5e".
      clock: cycles per second of the estimate; peak divided by the operations that the matrix units do in a cycle.
      peak: operations of bfloat16 products per second.
      memory: bytes of HBM that a program can use, as the compiler says.
      bandwidth: bytes per second from and to HBM.
      links: bytes per second that a chip sends along one axis of its torus, both directions together.
    """

    name: str
    clock: float
    peak: float
    memory: int
    bandwidth: float
    links: float


GIB = 2**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 1.50e9, 197e12, round(15.75 * GIB), 819e9, 100e9),
        Chip("v5p", 1.75e9, 459e12, round(95.74 * GIB), 2765e9, 180e9),
        Chip("v6e", 1.75e9, 918e12, round(31.25 * GIB), 1640e9, 180e9),
    )
}
EXAMPLES = "v5e:2x4, v5e:16x16, v5p:8x8x8 or v6e:16x16"


@dataclasses.dataclass(frozen=True)
class Topology:
    """A described machine.

    Attributes:
      name: its name, as in "v5e:16x16".
      chip: facts of its chips.
      devices: its devices, one for each chip.
      versions: versions of the compiler and of jax by name.
    """

    name: str
    chip: Chip
    devices: tuple[Any, ...]
    versions: dict[str, str]

    @property
    def estimated(self) -> str:
        """The words that belong to every number: by which compiler they are estimated and for what."""
        named = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"estimated by XLA for {len(self.devices):,} {self.chip.name} chips ({named}), not measured"


def open_topology(name: str) -> Topology:
    """Returns a machine by its name.

    Args:
      name: generation and shape, as in "v5e:16x16".

    Raises:
      ValueError: if the name is unknown, the shape is impossible, or the compiler is not installed.
    """
    if re.fullmatch(r"[a-z]+\d+[a-z]*:\d+", name) and not name.startswith("v"):
        raise ValueError(
            f"topology must be one of TPUs, as {EXAMPLES}, got {name!r}; a GPU's compiler is in the CUDA wheels of jax"
            " (pip install 'jax[cuda12]'): compile on a machine that has the GPU, where siglip-jax bench measures it"
        )
    generation, colon, shape = name.partition(":")
    if generation not in CHIPS or not colon or not re.fullmatch(r"\d{1,3}x\d{1,3}(x\d{1,3})?", shape):
        raise ValueError(
            f"topology must be one of {', '.join(CHIPS)} with a shape, as {EXAMPLES}, got {name!r}; write it so"
        )
    import_optional("libtpu", "a plan for TPUs", "tpu")
    describe_no_tpu()
    try:
        devices = topologies.get_topology_desc(name, platform="tpu").devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).removeprefix("INVALID_ARGUMENT: ").splitlines()[0]
        raise ValueError(
            f"topology must be a shape that the compiler knows, got {name!r} ({reason}); change it"
        ) from None
    versions = {"jax": jax.__version__}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["libtpu"] = importlib.metadata.version("libtpu")
    return Topology(name, CHIPS[generation], tuple(devices), versions)
