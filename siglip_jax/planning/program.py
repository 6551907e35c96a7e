"""Facts of one compiled program: bytes on each device, products, estimated cycles, and every collective."""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from siglip_jax.planning.hlo import Instruction, Module, replica_group

# Bytes that each of n devices sends over its links, as a multiple of the bytes of the larger of input and output.
_SHARE = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation of a program.

    Attributes:
      kind: "all-gather", "all-reduce", "reduce-scatter", "all-to-all" or "collective-permute".
      over: axes of the mesh over which devices exchange, as in "fsdp"; "ring" for a permute.
      count: how often a device runs it in one run of the program, loops multiplied out.
      bytes: bytes that a device sends each time.
      asynchronous: whether the device computes meanwhile.
      hidden_cycles: estimated cycles of what runs between its start and its end each time; 0 if synchronous.
      product: whether a matrix product runs between its start and its end.
      largest: dimensions of its largest array.
      source: where it comes from in the traced function.

    No example: `plan` returns them.
    """

    kind: str
    over: str
    count: int
    bytes: int
    asynchronous: bool
    hidden_cycles: int
    product: bool
    largest: tuple[int, ...]
    source: str


@dataclasses.dataclass(frozen=True)
class Program:
    """What XLA says of a program for one device.

    Attributes:
      arguments: bytes of its arguments.
      outputs: bytes of its outputs, those that take the place of arguments left out.
      temporaries: bytes of its temporaries.
      peak: bytes that it needs, arguments and outputs among them: the smaller of two bounds, see `read_program`.
      flops: operations of its matrix products, convolutions and kernels, loops multiplied out.
      cycles: estimated cycles, loops multiplied out; 0 where XLA estimates none.
      collectives: all collectives, in the order of the program.
      kernels: number of kernels, as Pallas makes them, of which XLA estimates no cycles.
      kernel_flops: operations that the kernels say of themselves, loops multiplied out.
      uncounted: number of loops that are counted as one iteration since their number is unknown.
    """

    arguments: int
    outputs: int
    temporaries: int
    peak: int
    flops: int
    cycles: int
    collectives: tuple[Collective, ...]
    kernels: int
    kernel_flops: int
    uncounted: int


def read_program(compiled: jax.stages.Compiled, mesh: Mesh) -> Program:
    """Returns the facts of a compiled program.

    The compiler states two numbers that are not less than what the program needs: the size of all arrays, of which some
    are not there at once, and the most that is in use at once, which counts the memory on the chip besides.

    Args:
      compiled: result of `jax.jit(function).lower(...).compile()`.
      mesh: mesh that it was compiled for.
    """
    memory: Any = compiled.memory_analysis()
    reader = _Reader(Module.parse(compiled.as_text() or ""), mesh)
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    collectives = tuple(reader.collectives())
    entry = reader.module.entry
    return Program(
        arguments=memory.argument_size_in_bytes,
        outputs=outputs,
        temporaries=memory.temp_size_in_bytes,
        peak=min(memory.argument_size_in_bytes + outputs + memory.temp_size_in_bytes, memory.peak_memory_in_bytes),
        flops=reader.module.flops(entry),
        cycles=reader.cycles(entry),
        collectives=collectives,
        kernels=reader.kernels(),
        kernel_flops=reader.kernel_flops(),
        uncounted=len(reader.module.uncounted),
    )


def refused_bytes(message: str) -> tuple[int, int] | None:
    """Returns the bytes that a refused program needs and those that a device has, from the compiler's message.

    Args:
      message: text of the error.

    Returns:
      Both numbers; None if the error is another one.
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    size = r"([\d.]+)([KMGT]?)i?B?"
    for pattern in (rf"Used {size} of {size} hbm", rf"\({size}\) exceeds available HBM \({size}\)"):
        if found := re.search(pattern, message):
            return round(float(found[1]) * _UNITS[found[2]]), round(float(found[3]) * _UNITS[found[4]])
    return None


class _Reader:
    """Follows the schedule of a program."""

    def __init__(self, module: Module, mesh: Mesh) -> None:
        self.module, self.mesh = module, mesh
        self._cycles: dict[str, int] = {}

    def cycles(self, computation: str) -> int:
        """Returns the estimated cycles of a computation that runs one instruction after the other."""
        if computation not in self._cycles:
            lines = self.module.computations[computation]
            self._cycles[computation] = sum(self._cycles_of(computation, i) for i in lines)
        return self._cycles[computation]

    def _cycles_of(self, computation: str, instruction: Instruction) -> int:
        if instruction.opcode not in ("while", "call", "conditional"):
            return instruction.cycles
        once = [self.cycles(name) for name in instruction.called]
        if instruction.opcode == "conditional":
            return max(once, default=0)
        return sum(once) * (self.module.iterations(computation, instruction) if instruction.opcode == "while" else 1)

    def kernels(self) -> int:
        """Returns the number of kernels in the text, each counted once."""
        lines = [i for found in self.module.computations.values() for i in found if i.opcode == "custom-call"]
        return sum('custom_call_target="tpu_custom_call"' in i.rest for i in lines)

    def kernel_flops(self) -> int:
        """Returns the operations that all kernels say of themselves."""
        runs = self._runs(self.module.entry)
        return sum(times * i.kernel_flops for name, times in runs for i in self.module.computations[name])

    def _runs(self, computation: str, times: int = 1) -> Iterator[tuple[str, int]]:
        """Yields (computation, number of runs) of those whose instructions run one after the other."""
        yield computation, times
        for i in self.module.computations[computation]:
            if i.opcode in ("while", "call", "conditional"):
                runs = times * (self.module.iterations(computation, i) if i.opcode == "while" else 1)
                for name in i.called:
                    yield from self._runs(name, runs)

    def collectives(self) -> Iterator[Collective]:
        """Yields every collective, with what runs while it is under way."""
        for computation, times in self._runs(self.module.entry):
            yield from self._collectives_of(computation, times)

    def _collectives_of(self, computation: str, times: int) -> Iterator[Collective]:
        lines = self.module.computations[computation]
        starts: dict[str, tuple[int, Instruction, str]] = {}
        ends: dict[str, int] = {}
        found: list[tuple[str, Instruction, str, bool]] = []
        for at, line in enumerate(lines):
            inner, where = self._inner(computation, line)
            if inner is None:
                continue
            begins, finishes, key = self._phase(line, inner)
            if finishes:
                ends[key] = at
            elif begins:
                starts[key] = (at, inner, where)
                found.append((key, inner, where, True))
            elif not key:
                found.append((line.name, inner, where, False))
        for key, inner, where, asynchronous in found:
            between = lines[starts[key][0] + 1 : ends.get(key, len(lines))] if asynchronous else []
            hidden = sum(self._cycles_of(computation, i) for i in between)
            product = any(self.module.flops_of(computation, i) for i in between)
            yield self._collective(inner, where, times, asynchronous, hidden, product)

    def _inner(self, computation: str, line: Instruction) -> tuple[Instruction | None, str]:
        """Returns the collective of an instruction, which may be within a fusion, and the computation that holds it."""
        if _kind(line.opcode) is not None:
            return line, computation
        if line.opcode in ("fusion", "async-start", "async-done", "async-update"):
            for name in line.called:
                for i in self.module.computations.get(name, ()):
                    if _kind(i.opcode) is not None:
                        return i, name
        return None, ""

    def _phase(self, line: Instruction, inner: Instruction) -> tuple[bool, bool, str]:
        """Returns whether an instruction starts and whether it ends a collective, and a name that both ends share.

        The name is empty for a collective that is not asynchronous.
        """
        if line.opcode.endswith("-done"):
            return False, True, line.operands[0]
        if line.opcode.endswith("-start"):
            return True, False, line.name
        if line.opcode != "fusion" or (chain := re.search(r'chain_id="(\d+)"', inner.rest)) is None:
            return False, False, ""
        targets = "".join(i.rest for i in self.module.computations[line.called[0]] if i.opcode == "custom-call")
        return "AsyncCollectiveStart" in targets, "AsyncCollectiveDone" in targets, f"chain {chain[1]}"

    def _collective(
        self, inner: Instruction, where: str, times: int, asynchronous: bool, hidden: int, product: bool
    ) -> Collective:
        names = self.module.names[where]
        operands = [shape for name in inner.operands if name in names for shape in names[name].shapes]
        kind = _kind(inner.opcode) or ""
        group = replica_group(inner.rest)
        if kind == "all-reduce" and "all-reduce-scatter" in where:
            kind = "reduce-scatter"
        size = len(group) or self.mesh.size
        sent = sum(x.bytes for x in operands) * (size if kind == "all-gather" else 1)
        largest = max((*operands, *inner.shapes), key=lambda x: x.bytes).dims if operands or inner.shapes else ()
        return Collective(
            kind=kind,
            over="ring" if kind == "collective-permute" else self._axes(group),
            count=times,
            bytes=round(sent * _SHARE[kind](size)),
            asynchronous=asynchronous,
            hidden_cycles=hidden,
            product=product,
            largest=largest,
            source=inner.source,
        )

    @functools.cached_property
    def _places(self) -> np.ndarray:
        return np.stack(np.unravel_index(np.arange(self.mesh.size), self.mesh.devices.shape), axis=1)

    def _axes(self, group: tuple[int, ...]) -> str:
        """Returns the axes of the mesh along which the devices of a group differ."""
        places = self._places[list(group or range(self.mesh.size))]
        names = [name for name, at in zip(self.mesh.axis_names, places.T, strict=True) if len(set(at.tolist())) > 1]
        return "+".join(map(str, names)) or "one device"


def _kind(opcode: str) -> str | None:
    """Returns the kind of a collective, whether its opcode is that of its start, its end, or both at once."""
    kind = opcode.removesuffix("-start").removesuffix("-done")
    return kind if kind in _SHARE else None
