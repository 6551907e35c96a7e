"""From the arrays of a checkpoint to arrays on devices, one at a time."""

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from siglip_jax.checkpoints.mapped import release
from siglip_jax.checkpoints.table import LayerStack, flatten, stack_layers, unflatten
from siglip_jax.parallel.rules import Rules, shardings

_THREADS = 4
_COLUMNS = 64  # of a transposed view, copied at a time: the cache then holds the rows of the file they come from
_ALIGNMENT = 64  # bytes; XLA on a CPU takes memory over, without a copy, only if it begins at such an address


def place_params(
    params: Mapping[str, Any],
    dtype: DTypeLike | None,
    scan_layers: bool,
    mesh: Mesh | None,
    rules: Rules,
) -> dict[str, Any]:
    """Puts parameters on devices; of a file that is mapped each device reads its part, and nothing is kept twice.

    Args:
      params: numpy or jax arrays, layers not stacked.
      dtype: converts to this type, except temperature and bias; None keeps each array's own.
      scan_layers: stack the layers of each tower.
      mesh: None for the default device.
    """
    if scan_layers:
        params = stack_layers(params, LayerStack)
    flat = flatten(params)
    where: Mapping[str, Any] = {}
    if mesh is not None:
        where = shardings({path: tuple(x.shape) for path, x in flat.items()}, mesh, rules)

    def place(path: str) -> jax.Array:
        return _place(path, flat[path], dtype, where.get(path))

    # numpy copies without holding the interpreter's lock; more threads than this only hold more copies at a time.
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return unflatten(dict(zip(flat, pool.map(place, flat), strict=True)))


def _place(path: str, x: Any, dtype: DTypeLike | None, sharding: Any) -> jax.Array:
    kind = np.dtype(x.dtype if dtype is None or path in ("logit_scale", "logit_bias") else dtype)
    kind = np.dtype(jax.dtypes.canonicalize_dtype(kind))
    if isinstance(x, LayerStack) and isinstance(x.layers[0], jax.Array):
        x = jnp.stack(x.layers)
    if isinstance(x, jax.Array):
        x = x.astype(kind)
        if sharding is None:
            return x
        if sharding.is_fully_addressable or not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        # device_put would compare x over the processes, and wait there for arrays that come in another order.
        return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)
    if sharding is None:
        return jax.device_put(_copy(x, (), kind))
    parts: dict[str, np.ndarray] = {}  # devices that hold the same part share its copy

    def part(index: Any) -> np.ndarray:
        if (name := str(index)) not in parts:
            parts[name] = _copy(x, index, kind)
        return parts[name]

    return jax.make_array_from_callback(tuple(x.shape), sharding, part)


def _copy(x: Any, index: Any, dtype: np.dtype) -> np.ndarray:
    """Copies a part of an array in C order to memory of its own, which nothing else will write to."""
    layers, index = (
        (x.layers[index[0] if index else slice(None)], index[1:]) if isinstance(x, LayerStack) else ([x], index)
    )
    views = [layer[index] for layer in layers]
    out = _empty((len(views), *views[0].shape), dtype)
    for i, (layer, view) in enumerate(zip(layers, views, strict=True)):
        _fill(out[i : i + 1], view)
        release(layer)
    return out if isinstance(x, LayerStack) else out[0]


def _fill(out: np.ndarray, view: np.ndarray) -> None:
    transposed = view.ndim > 1 and view.strides[-1] != view.itemsize
    step = _COLUMNS if transposed else max(1, math.prod(view.shape[-1:]))
    for start in range(0, max(1, math.prod(view.shape[-1:])), step):
        out[..., start : start + step] = view[..., start : start + step]


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns memory that XLA can take over as it is."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
