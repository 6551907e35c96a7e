"""Tables between parameters and the tensors of a file; reading and writing of every format derive from them.

Each row records the path of a parameter, the tensor that holds it, and the invertible transform between the two. A
tensor of several parameters, such as packed projections or stacked layers, has one row per parameter, with its part.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from siglip_jax._checks import shown
from siglip_jax.params import Shape, flatten, layer_slice, unflatten, unstack_layers
from siglip_jax.quantization.schemes import Quantized

FLOATS = ("float64", "float32", "float16", "bfloat16")


class Transform(NamedTuple):
    """An invertible transform between a tensor of the file and a parameter; both directions return views.

    Attributes:
      to_param: function from the tensor to the parameter.
      to_tensor: function from the parameter to the tensor.
    """

    to_param: Callable[[np.ndarray], np.ndarray]
    to_tensor: Callable[[np.ndarray], np.ndarray]


SAME = Transform(lambda x: x, lambda x: x)
LINEAR = Transform(lambda x: x.T, lambda x: x.T)  # (out, in) <-> (in, out)
PATCHES = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO


def reshaped(param: Shape, tensor: Shape) -> Transform:
    """Returns the transform between a parameter and a tensor of another shape and the same size."""
    return Transform(lambda x: x.reshape(param), lambda x: x.reshape(tensor))


def layer_of(transform: Transform) -> Transform:
    """Returns the transform of one layer of a tensor that stacks the layers on a leading axis."""
    return Transform(lambda x: transform.to_param(x[0]), lambda x: transform.to_tensor(x)[None])


@dataclasses.dataclass(frozen=True)
class Row:
    """The entry of one parameter.

    Attributes:
      path: path of the parameter in the tree.
      key: name of the tensor that holds it.
      shape: shape of the parameter in the tree.
      transform: transform between the tensor, or its part, and the parameter.
      part: index of the part of the tensor that holds the parameter.
      parts: number of equal parts along the first axis of the tensor; 1: the whole tensor.
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
        # A broadcast scalar has the shape but takes no memory.
        shape = self.transform.to_tensor(np.broadcast_to(np.int8(0), self.shape)).shape
        return shape if self.parts == 1 else (shape[0] * self.parts, *shape[1:])

    def param(self, tensor: np.ndarray) -> np.ndarray:
        """Returns the parameter as a view of the tensor.

        Args:
          tensor: the whole tensor.
        """
        if self.parts > 1:
            size = tensor.shape[0] // self.parts
            tensor = tensor[self.part * size : (self.part + 1) * size]
        return self.transform.to_param(tensor)


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
      file: the file.
      shape: shape of the tensor.
      dtype: dtype of the tensor.
      view: function that returns the tensor, a view of the file where the format allows.
    """

    file: Path
    shape: Shape
    dtype: np.dtype
    view: Callable[[], np.ndarray] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class NewTensor:
    """A tensor to be written, whose values are computed when they are written.

    Attributes:
      shape: shape of the tensor.
      dtype: dtype of the tensor.
      make: function that computes the tensor.
    """

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
    """Returns the parameters of a table as views that read the file on access.

    Args:
      what: name of the checkpoint, for errors.
      rows: rows of the parameters to read.
      tensors: tensors of the files by name.
      ignored: names of further tensors that the files may hold.

    Returns:
      Nested dict of arrays.

    Raises:
      ValueError: if tensors are missing, unexpected, of the wrong shape or not floating point.
    """
    rows = list(rows)
    expected = check_rows(what, rows, tensors, ignored)
    if wrong := [f"{key}: {tensors[key].dtype}" for key in expected if tensors[key].dtype.name not in FLOATS]:
        raise ValueError(f"{what}: dtypes must be among {', '.join(FLOATS)}, got {_some(wrong, _ROOM)}; cast them")
    views = {key: tensors[key].view() for key in expected}
    return unflatten({row.path: row.param(views[row.key]) for row in rows})


def check_rows(
    what: str, rows: Iterable[Row], tensors: Mapping[str, StoredTensor], ignored: Iterable[str]
) -> dict[str, Shape]:
    """Compares a table with the tensors of some files.

    Args:
      what: name of the checkpoint, for errors.
      rows: rows of the parameters to read.
      tensors: tensors of the files by name.
      ignored: names of further tensors that the files may hold.

    Returns:
      The shapes of the tensors of the table by name.

    Raises:
      ValueError: if tensors are missing, unexpected or of the wrong shape.
    """
    expected = {row.key: row.tensor_shape for row in rows}
    others = set(ignored).difference(expected)
    check_names_and_shapes(what, expected, {key: t.shape for key, t in tensors.items() if key not in others})
    return expected


def new_tensors(what: str, rows: Iterable[Row], params: Mapping[str, Any]) -> dict[str, NewTensor]:
    """Returns the tensors of a file to be written; each is computed when it is written.

    Args:
      what: name of the parameters, for errors.
      rows: rows of all parameters.
      params: nested dict of numpy or jax arrays, layers stacked or not.

    Returns:
      The tensors by name, in the order of the table.

    Raises:
      ValueError: if the parameters are not those of the table, or are quantized.
    """
    if set(params) == {"params"}:
        raise ValueError("params must be the tree of parameters, got {'params': …}; pass variables['params']")
    flat = flatten(unstack_layers(params, layer_slice))
    if any(isinstance(x, Quantized) for x in flat.values()):
        raise ValueError("params must be float arrays, got quantized ones; save them with Siglip.save_pretrained")
    rows = list(rows)
    check_names_and_shapes(what, {row.path: row.shape for row in rows}, {p: np.shape(x) for p, x in flat.items()})
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row.key, []).append(row)
    return {key: _new_tensor(key, group, flat) for key, group in grouped.items()}


def _new_tensor(key: str, rows: list[Row], flat: Mapping[str, Any]) -> NewTensor:
    dtypes = {np.dtype(flat[row.path].dtype) for row in rows}
    if len(dtypes) > 1:
        paths, names = ", ".join(row.path for row in rows), ", ".join(sorted(dtype.name for dtype in dtypes))
        raise ValueError(f"{paths} must have one dtype, since they form {key}, got {names}; convert them to one")

    def make() -> np.ndarray:
        pieces = [row.transform.to_tensor(np.asarray(flat[row.path])) for row in rows]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    return NewTensor(rows[0].tensor_shape, dtypes.pop(), make)


def check_names_and_shapes(what: str, expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """Compares the names and shapes of tensors with the expected ones.

    Args:
      what: name of the checkpoint or parameters, for errors.
      expected: expected shapes by name.
      found: shapes by name.

    Raises:
      ValueError: if they differ; the message lists missing and unexpected names, and wrong shapes.
    """
    problems: dict[str, list[str]] = {}
    if missing := [name for name in expected if name not in found]:
        problems["missing"] = missing
    if unexpected := [name for name in found if name not in expected]:
        problems["unexpected"] = unexpected
    if wrong := [n for n, shape in expected.items() if n in found and tuple(found[n]) != shape]:
        problems["of the wrong shape"] = [f"{n} must be {expected[n]}, got {shown(tuple(found[n]))}" for n in wrong]
    if problems:
        room = _ROOM // len(problems)
        listed = [f"{len(names)} {kind} ({_some(names, room)})" for kind, names in problems.items()]
        raise ValueError(
            f"{what} must hold the parameters of the configuration, got {', '.join(listed)}; use the config.json it"
            " was saved with"
        )


_ROOM = 200  # characters of an error for the names of tensors


def _some(names: list[str], room: int) -> str:
    """Returns the first names, at least one, that fit into some characters, and the number of the others."""
    # Names from a file are untrusted: they may contain newlines and terminal escape sequences.
    names = [name if name.isprintable() else repr(name) for name in names]
    listed = [names[0] if len(names[0]) <= 120 else f"{names[0][:117]}..."]
    for name in names[1:]:
        if len(", ".join([*listed, name])) > room:
            break
        listed.append(name)
    more = f", and {len(names) - len(listed)} more" if len(names) > len(listed) else ""
    return ", ".join(listed) + more
