"""From the arrays of a checkpoint to arrays on devices, one at a time."""

import dataclasses
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from siglip_jax.checkpoints.mapped import release
from siglip_jax.parallel.sharding import SHARDING_RULES, shardings
from siglip_jax.params import LayerStack, flatten, stack_layers, unflatten
from siglip_jax.quantization.layers import is_quantized
from siglip_jax.quantization.schemes import Quantized, quantize
from siglip_jax.rules import Rules

_THREADS = 4
_COLUMNS = 64  # of a transposed view, copied at a time: the cache then holds the rows of the file they come from
_ALIGNMENT = 64  # bytes; XLA on a CPU takes memory over, without a copy, only if it begins at such an address


def place_params(
    params: Mapping[str, Any],
    dtype: DTypeLike | None = None,
    *,
    scan_layers: bool = False,
    mesh: Mesh | None = None,
    rules: Rules[PartitionSpec] = SHARDING_RULES,
    quantization: str | None = None,
) -> dict[str, Any]:
    """Copies parameters to devices, one at a time; of a memory-mapped file each device reads only its shard.

    Args:
      params: nested dict of numpy or jax arrays, or `Quantized` kernels; layers not stacked.
      dtype: dtype of the result, except that of `logit_scale`, `logit_bias` and quantized kernels; None: each array's
        own.
      scan_layers: stack the layers of each tower.
      mesh: mesh to shard over; None: the default device.
      rules: sharding rules: (pattern over the path, axes of the last dimensions), first match wins. Codes and scales
        of a quantized kernel follow the rule of the kernel.
      quantization: scheme ("int8", "int4", "nf4", "fp8") of the kernels of dense layers; None: they stay as they are. One float kernel at a time is then in memory.

    Returns:
      Nested dict of jax arrays and `Quantized` kernels.

    Raises:
      ValueError: if a file is damaged, no rule covers a parameter, or both `scan_layers` and `quantization` are given.
    """
    if scan_layers and quantization is not None:
        raise ValueError(
            f"quantization must be None with scan_layers=True, got {quantization!r}; use scan_layers=False"
        )
    flat = flatten(stack_layers(params, LayerStack) if scan_layers else params)

    def place(path: str) -> Any:
        x = flat[path]
        if quantization is not None and is_quantized(path) and not isinstance(x, Quantized):
            view, x = x, quantize(np.asarray(x), quantization)
            release(view)
        if not isinstance(x, Quantized):
            return _place(path, x, dtype, _sharding(path, x, mesh, rules))
        codes, scale = (_place(path, part, None, _sharding(path, part, mesh, rules)) for part in (x.codes, x.scale))
        return dataclasses.replace(x, codes=codes, scale=scale)

    # numpy copies without holding the interpreter's lock; more threads than this only hold more copies at a time.
    threads = 1 if quantization is not None else min(_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        return unflatten(dict(zip(flat, pool.map(place, flat), strict=True)))


def _sharding(path: str, x: Any, mesh: Mesh | None, rules: Rules[PartitionSpec]) -> NamedSharding | None:
    return None if mesh is None else shardings({path: tuple(x.shape)}, mesh, rules)[path]


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
