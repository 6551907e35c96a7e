"""Tables between parameters and the tensors of a file, whatever the format; reading and writing derive from them.

Each row names a parameter by its path, the tensor it comes from, and the invertible transform between the two. A tensor
that holds several parameters, such as packed projections or stacked layers, has several rows that say which part.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from siglip_jax.params import Shape, flatten, layer_slice, unflatten, unstack_layers
from siglip_jax.quantization.schemes import Quantized

FLOATS = ("float64", "float32", "float16", "bfloat16")


class Transform(NamedTuple):
    """A tensor of the file to a parameter, and back; both are views."""

    to_param: Callable[[np.ndarray], np.ndarray]
    to_tensor: Callable[[np.ndarray], np.ndarray]


SAME = Transform(lambda x: x, lambda x: x)
LINEAR = Transform(lambda x: x.T, lambda x: x.T)  # (out, in) <-> (in, out)
PATCHES = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO


def reshaped(param: Shape, tensor: Shape) -> Transform:
    """A tensor with its axes split or merged."""
    return Transform(lambda x: x.reshape(param), lambda x: x.reshape(tensor))


def layer_of(transform: Transform) -> Transform:
    """One layer of a tensor that holds all layers on a leading axis."""
    return Transform(lambda x: transform.to_param(x[0]), lambda x: transform.to_tensor(x)[None])


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter: where it is in the tree, which tensor it comes from, and its shape in the tree.

    `part` of `parts` equal pieces of the tensor's first axis.
    """

    path: str
    key: str
    shape: Shape
    transform: Transform = SAME
    part: int = 0
    parts: int = 1

    @functools.cached_property
    def tensor_shape(self) -> Shape:
        """Shape of the whole tensor in the file."""
        # A broadcast scalar has the shape without the memory.
        shape = self.transform.to_tensor(np.broadcast_to(np.int8(0), self.shape)).shape
        return shape if self.parts == 1 else (shape[0] * self.parts, *shape[1:])

    def param(self, tensor: np.ndarray) -> np.ndarray:
        """Returns the parameter, a view of the whole tensor."""
        if self.parts > 1:
            size = tensor.shape[0] // self.parts
            tensor = tensor[self.part * size : (self.part + 1) * size]
        return self.transform.to_param(tensor)


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file: what its header says, and the view that reads it."""

    file: Path
    shape: Shape
    dtype: np.dtype
    view: Callable[[], np.ndarray] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class NewTensor:
    """A tensor to be written: its shape and type are known before it is put together."""

    shape: Shape
    dtype: np.dtype
    make: Callable[[], np.ndarray] = dataclasses.field(repr=False)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def read_params(
    what: str,
    rows: Iterable[Row],
    tensors: Mapping[str, StoredTensor],
    ignored: Iterable[str] = (),
) -> dict[str, Any]:
    """Returns the tree of parameters of a table: views that read the file when they are looked at.

    Args:
      what: says in errors what was read.
      ignored: further keys that the file may hold.

    Raises:
      ValueError: if tensors are missing, unexpected, of the wrong shape or no floats.
    """
    rows = list(rows)
    expected = check_rows(what, rows, tensors, ignored)
    if wrong := [f"{key}: {tensors[key].dtype}" for key in expected if tensors[key].dtype.name not in FLOATS]:
        raise ValueError(f"{what}: expected tensors of one of {FLOATS}, found {', '.join(wrong[:4])}")
    views = {key: tensors[key].view() for key in expected}
    return unflatten({row.path: row.param(views[row.key]) for row in rows})


def check_rows(
    what: str, rows: Iterable[Row], tensors: Mapping[str, StoredTensor], ignored: Iterable[str]
) -> dict[str, Shape]:
    """Compares a table with a file and returns the shapes of its tensors by key.

    Raises:
      ValueError: if tensors are missing, unexpected or of the wrong shape.
    """
    expected = {row.key: row.tensor_shape for row in rows}
    others = set(ignored).difference(expected)
    check_names_and_shapes(what, expected, {key: t.shape for key, t in tensors.items() if key not in others})
    return expected


def new_tensors(what: str, rows: Iterable[Row], params: Mapping[str, Any]) -> dict[str, NewTensor]:
    """Returns the tensors of a file by key, in the order of the table, each to be made when it is written.

    Args:
      params: layers stacked or not; numpy or jax arrays.

    Raises:
      ValueError: if the parameters are not those of the table, or quantized.
    """
    if set(params) == {"params"}:
        raise ValueError("expected the parameters themselves, found {'params': …}; pass variables['params']")
    flat = flatten(unstack_layers(params, layer_slice))
    if any(isinstance(x, Quantized) for x in flat.values()):
        raise ValueError("expected float parameters, found quantized ones; save them with Siglip.save_pretrained")
    rows = list(rows)
    check_names_and_shapes(what, {row.path: row.shape for row in rows}, {p: np.shape(x) for p, x in flat.items()})
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row.key, []).append(row)
    return {key: _new_tensor(key, group, flat) for key, group in grouped.items()}


def _new_tensor(key: str, rows: list[Row], flat: Mapping[str, Any]) -> NewTensor:
    dtypes = {np.dtype(flat[row.path].dtype) for row in rows}
    if len(dtypes) > 1:
        raise ValueError(f"expected one type in {', '.join(r.path for r in rows)}, which make up {key}; found {dtypes}")

    def make() -> np.ndarray:
        pieces = [row.transform.to_tensor(np.asarray(flat[row.path])) for row in rows]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    return NewTensor(rows[0].tensor_shape, dtypes.pop(), make)


def check_names_and_shapes(what: str, expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """Compares two sets of names with shapes.

    Raises:
      ValueError: in one line that lists what is missing, unexpected and of the wrong shape.
    """
    problems = []
    if missing := [name for name in expected if name not in found]:
        problems.append(f"{len(missing)} missing ({_some(missing)})")
    if unexpected := [name for name in found if name not in expected]:
        problems.append(f"{len(unexpected)} unexpected ({_some(unexpected)})")
    if wrong := [n for n, shape in expected.items() if n in found and tuple(found[n]) != shape]:
        listed = _some([f"{n}: expected {expected[n]}, found {tuple(found[n])}" for n in wrong])
        problems.append(f"{len(wrong)} of the wrong shape ({listed})")
    if problems:
        raise ValueError(
            f"{what} does not fit the configuration: {'; '.join(problems)}; use the config.json it was saved with"
        )


def _some(names: list[str], limit: int = 4) -> str:
    # A file may name its tensors as it likes, with newlines and what terminals take for commands.
    names = [name if name.isprintable() else repr(name) for name in names]
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
