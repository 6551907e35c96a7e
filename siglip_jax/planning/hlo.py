"""Reads the text of a compiled program: its computations, how often each runs, and the products in them."""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_BYTES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16}
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations|branch_computations)=\{?([^,{}\s]+)")
_ARRAY = re.compile(r"([a-z]+[0-9a-z]*)\[([0-9,]*)\]")


class Shape(NamedTuple):
    """An array of a program: element type and dimensions."""

    kind: str
    dims: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the array, without padding."""
        if self.kind.startswith("f8"):
            size = 1.0
        else:
            bits = re.search(r"\d+", self.kind)
            size = _BYTES.get(self.kind, int(bits[0]) / 8 if bits else 0)
        return math.ceil(math.prod(self.dims) * size)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation.

    Attributes:
      name: its name.
      opcode: what it does, as in "fusion".
      shapes: arrays of its result.
      operands: names of its operands.
      rest: attributes, as text.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    rest: str

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls, without those of a reduction."""
        return () if self.opcode in _REDUCTIONS else tuple(x.lstrip("%") for x in _CALLED.findall(self.rest))

    @functools.cached_property
    def cycles(self) -> int:
        """Cycles that XLA estimates for it; 0 where it estimates none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else 0

    @functools.cached_property
    def kernel_flops(self) -> int:
        """Operations that a Pallas kernel says of itself; 0 for any other instruction."""
        found = re.search(r'"cost_estimate":\{"flops":"(\d+)"', self.rest) if self.opcode == "custom-call" else None
        return int(found[1]) if found else 0

    @property
    def source(self) -> str:
        """Where it comes from in the traced function, as in "jit(step)/encoder/dot_general"."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


_REDUCTIONS = frozenset({"reduce", "reduce-window", "scatter", "sort", "select-and-scatter", "map", "all-reduce"}) | {
    "all-reduce-start",
    "reduce-scatter",
}


@dataclasses.dataclass
class Module:
    """A compiled program.

    Attributes:
      computations: instructions of each computation by its name, in the order in which they run.
      entry: name of the computation that runs first.
      uncounted: loops whose number of iterations is not in the text; each is counted as one iteration.
    """

    computations: dict[str, list[Instruction]]
    entry: str
    uncounted: set[str] = dataclasses.field(default_factory=set)
    _flops: dict[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Module":
        """Reads a program from the text that `jax.stages.Compiled.as_text` returns."""
        computations: dict[str, list[Instruction]] = {}
        entry, current = "", []
        for line in text.splitlines():
            if line.startswith(" "):
                if (found := _instruction(line)) is not None:
                    current.append(found)
            elif head := _HEAD.match(line):
                current = computations.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
        return cls(computations, entry)

    @functools.cached_property
    def names(self) -> dict[str, dict[str, Instruction]]:
        """Instructions by name, for each computation."""
        return {name: {i.name: i for i in found} for name, found in self.computations.items()}

    def flops(self, computation: str) -> int:
        """Returns the operations of the products, convolutions and kernels of a computation, loops multiplied out."""
        if computation not in self._flops:
            self._flops[computation] = sum(self.flops_of(computation, i) for i in self.computations[computation])
        return self._flops[computation]

    def flops_of(self, computation: str, instruction: Instruction) -> int:
        """Returns the operations of the products of an instruction and of all that it calls."""
        by_name = self.names[computation]
        if instruction.opcode in ("dot", "convolution"):
            operands = [by_name[name].shapes[0].dims for name in instruction.operands]
            count = _dot_flops if instruction.opcode == "dot" else _convolution_flops
            return count(instruction, *operands[:2])
        called = [name for name in instruction.called if name in self.computations]
        times = self.iterations(computation, instruction) if instruction.opcode == "while" else 1
        return instruction.kernel_flops + times * sum(map(self.flops, called))

    def iterations(self, computation: str, loop: Instruction) -> int:
        """Returns the number of iterations of a `while`, from its attribute or from its counter; 1 where unknown."""
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(found[1])
        condition, body = (re.search(rf"{what}=%?([\w.\-]+)", loop.rest) for what in ("condition", "body"))
        found = condition and body and self._counted(computation, loop, condition[1], body[1])
        if found is None:
            self.uncounted.add(loop.name)
            return 1
        return found

    def _counted(self, computation: str, loop: Instruction, condition: str, body: str) -> int | None:
        """Returns the iterations of a loop whose counter is compared with a constant; None for another loop."""
        test = self.computations[condition][-1]
        if test.opcode == "fusion" and test.called:  # the comparison was fused with nothing else
            inner = self.computations[test.called[0]]
            names = [self.names[condition].get(name) for name in test.operands]
            given = {p.name: x for p, x in zip((i for i in inner if i.opcode == "parameter"), names, strict=False) if x}
            compare, known = inner[-1], {**self.names[test.called[0]], **given}
        else:
            compare, known = test, self.names[condition]
        if compare.opcode != "compare" or len(compare.operands) != 2:
            return None
        sides = [known.get(name) for name in compare.operands]
        limits = [_constant(x) if x is not None else None for x in sides]
        counters = [x for x in sides if x is not None and x.opcode == "get-tuple-element"]
        limit = next((x for x in limits if x is not None), None)
        if limit is None or len(counters) != 1 or (index := _index(counters[0])) is None:
            return None
        start = self._traced(computation, self.names[computation].get(loop.operands[0]), index)
        step = self._step(body, index)
        distance = abs(limit - (0 if start is None else start))
        closed = re.search(r"direction=(LE|GE)", compare.rest)
        return -(-(distance + bool(closed)) // step) if step else None

    def _traced(self, computation: str, value: Instruction | None, index: int) -> int | None:
        """Returns the constant that an element of a tuple starts from; None if it is no constant."""
        by_name = self.names[computation]
        if value is not None and value.opcode == "tuple":
            value = by_name.get(value.operands[index])
        while value is not None and value.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
            value = by_name.get(value.operands[0])
        return None if value is None else _constant(value)

    def _step(self, body: str, index: int) -> int:
        """Returns by how much an iteration changes its counter; 1 where the text does not tell."""
        root, by_name = self.computations[body][-1], self.names[body]
        value = by_name.get(root.operands[index]) if root.opcode == "tuple" else None
        while value is not None and value.opcode in ("copy", "bitcast"):
            value = by_name.get(value.operands[0])
        if value is None or value.opcode not in ("add", "subtract"):
            return 1
        steps = [_constant(x) for name in value.operands if (x := by_name.get(name)) is not None]
        return abs(next((x for x in steps if x), 1))


def _instruction(line: str) -> Instruction | None:
    """Parses a line of a computation."""
    name, equals, right = line.strip().removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    end = _closing(right, 0) + 1 if right.startswith("(") else right.find(" ")
    shapes, right = right[:end], right[end:].strip()
    start = right.find("(")
    if start < 0:
        return None
    close = _closing(right, start)
    opcode, inside, rest = right[:start], right[start + 1 : close], right[close + 1 :]
    arrays = tuple(Shape(k, tuple(int(d) for d in dims.split(",") if d)) for k, dims in _ARRAY.findall(shapes))
    operands = (inside,) if opcode == "constant" else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name.lstrip("%"), opcode, arrays, operands, rest)


def _closing(text: str, start: int) -> int:
    """Returns the position of the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return start + found.start()
    return len(text) - 1


def _constant(instruction: Instruction) -> int | None:
    if instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.operands[0]):
        return None
    return int(instruction.operands[0])


def _index(instruction: Instruction) -> int | None:
    found = re.search(r"index=(\d+)", instruction.rest)
    return int(found[1]) if found else None


def _dot_flops(dot: Instruction, lhs: Sequence[int], rhs: Sequence[int]) -> int:
    """Returns the operations of a `dot`: two for each element of the result and each contracted element."""
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.rest)
    contracted = math.prod(lhs[int(d)] for d in found[1].split(",") if d) if found else 1
    return 2 * math.prod(dot.shapes[0].dims) * contracted


def _convolution_flops(convolution: Instruction, lhs: Sequence[int], rhs: Sequence[int]) -> int:
    """Returns the operations of a convolution, padding and the gaps of dilation left out.

    A TPU has no other products: a `dot` with batch dimensions becomes a convolution over them, of which most positions
    are padding.
    """
    found = re.search(r"dim_labels=([^_]+)_([^-]+)->(\S+?)(?:,|$)", convolution.rest)
    if found is None:
        return 0
    of_lhs, of_rhs, of_out = found[1], found[2], found[3]
    out = convolution.shapes[0].dims
    inside = re.search(r"window=\{([^}]*)\}", convolution.rest)
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", inside[1])) if inside else {}
    spatial = [label for label in of_lhs if label.isdigit()]

    def numbers(key: str, default: int) -> list[int]:
        return [int(x) for x in window[key].split("x")] if key in window else [default] * len(spatial)

    pads = [int(x.split("_")[0]) for x in window["pad"].split("x")] if "pad" in window else [0] * len(spatial)
    strides, lhs_dilation, rhs_dilation = (numbers(key, 1) for key in ("stride", "lhs_dilate", "rhs_dilate"))
    positions = 1
    for label, stride, pad, holes, spread in zip(spatial, strides, pads, lhs_dilation, rhs_dilation, strict=True):
        size = lhs[of_lhs.index(label)]
        at = np.arange(out[of_out.index(label)])[:, None] * stride - pad
        at = at + np.arange(rhs[of_rhs.index(label)])[None] * spread
        positions *= int(np.sum((at >= 0) & (at <= (size - 1) * holes) & (at % holes == 0)))
    feature_groups, batch_groups = (
        int(m[1]) if (m := re.search(rf"{what}_group_count=(\d+)", convolution.rest)) else 1
        for what in ("feature", "batch")
    )
    features = lhs[of_lhs.index("f")] // feature_groups
    return 2 * positions * features * out[of_out.index("f")] * (lhs[of_lhs.index("b")] // batch_groups)


def replica_group(rest: str) -> tuple[int, ...]:
    """Returns the partitions of the first group of a collective; () where it has none, as a permute.

    Args:
      rest: attributes of the collective.
    """
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(int(x) for x in found[1].split(","))
    iota = r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if found := re.search("replica_groups=" + iota, rest):
        shape, source, order = (_numbers(found[i]) for i in (1, 2, 3))
        ids = np.arange(math.prod(source)).reshape(source)
        return tuple(int(x) for x in (ids.transpose(order) if order else ids).reshape(shape)[0])
    named = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
    if found := re.search(named, rest):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        source, order = _numbers(found[2]), _numbers(found[3])
        ids = np.arange(math.prod(sizes.values()))
        if source:
            ids = ids.reshape(source)
            ids = ids.transpose(order) if order else ids
        ids = ids.reshape(tuple(sizes.values()))
        over = re.findall(r"'([^']+)'", found[4])
        return tuple(int(x) for x in ids[tuple(slice(None) if name in over else 0 for name in sizes)].ravel())
    return ()


def _numbers(text: str | None) -> tuple[int, ...]:
    return tuple(int(x) for x in text.split(",")) if text else ()
