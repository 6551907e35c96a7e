"""Copies of the arrays of a checkpoint on devices, made one at a time."""

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
from siglip_jax.params import LOGITS, LayerStack, flatten, stack_layers, unflatten
from siglip_jax.quantization.layers import is_quantized
from siglip_jax.quantization.schemes import Quantized, quantize
from siglip_jax.rules import Rules

_THREADS = 4
_COLUMNS = 64  # of a transposed view, copied at a time, so that the rows of the file they are read from stay cached
_ALIGNMENT = 64  # bytes; XLA on a CPU takes ownership of memory without a copy only at such an address


def place_params(
    params: Mapping[str, Any],
    dtype: DTypeLike | None = None,
    *,
    scan_layers: bool = False,
    mesh: Mesh | None = None,
    rules: Rules[PartitionSpec] = SHARDING_RULES,
    quantization: str | None = None,
) -> dict[str, Any]:
    """Copies parameters to devices, one at a time, so that loading needs little more memory than the parameters.

    Each device reads only its shard of a memory-mapped file.

    Args:
      params: nested dict of numpy or jax arrays, or `Quantized` kernels; layers not stacked.
      dtype: dtype of the result, except for quantized kernels, and for `logit_scale` and `logit_bias` where their own
        has more bits; None: the dtype of each array.
      scan_layers: whether to stack the layers of each tower on a leading axis.
      mesh: mesh to shard over; None: the default device.
      rules: pairs (pattern over the path of a parameter, mesh axes of its last dimensions), of which the first match
        wins. Codes and scales of a quantized kernel follow the rule of the kernel.
      quantization: scheme ("int8", "int4", "nf4" or "fp8") to quantize the kernels of dense layers to, with one float
        kernel in memory at a time; None: kernels are not quantized.

    Returns:
      Nested dict of jax arrays and `Quantized` kernels.

    Raises:
      ValueError: if a file is damaged, no rule covers a parameter, or both `scan_layers` and `quantization` are given.

    Example:
      >>> params = place_params({"head": {"kernel": np.ones((4, 2), np.float32)}}, jnp.bfloat16)
      >>> params["head"]["kernel"].dtype
      dtype(bfloat16)
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

    # numpy copies without holding the interpreter's lock; more threads would only hold more copies at a time.
    threads = 1 if quantization is not None else min(_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        return unflatten(dict(zip(flat, pool.map(place, flat), strict=True)))


def _sharding(path: str, x: Any, mesh: Mesh | None, rules: Rules[PartitionSpec]) -> NamedSharding | None:
    """Returns the sharding of an array; None without a mesh."""
    return None if mesh is None else shardings({path: tuple(x.shape)}, mesh, rules)[path]


def _place(path: str, x: Any, dtype: DTypeLike | None, sharding: Any) -> jax.Array:
    """Copies one array to the devices of its sharding, or to the default device."""
    kind = np.dtype(x.dtype if dtype is None else dtype)
    if path in LOGITS and x.dtype.itemsize > kind.itemsize:
        kind = np.dtype(x.dtype)
    kind = np.dtype(jax.dtypes.canonicalize_dtype(kind))
    if isinstance(x, LayerStack) and isinstance(x.layers[0], jax.Array):
        x = jnp.stack(x.layers)
    if isinstance(x, jax.Array):
        x = x.astype(kind)
        if sharding is None:
            return x
        if sharding.is_fully_addressable or not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        # device_put would compare x over the processes and hang, since they place their arrays in different orders.
        return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)
    if sharding is None:
        return jax.device_put(_copy(x, (), kind))
    shards: dict[str, np.ndarray] = {}  # devices that hold the same shard share its copy

    def shard(index: Any) -> np.ndarray:
        if (name := str(index)) not in shards:
            shards[name] = _copy(x, index, kind)
        return shards[name]

    return jax.make_array_from_callback(tuple(x.shape), sharding, shard)


def _copy(x: Any, index: Any, dtype: np.dtype) -> np.ndarray:
    """Copies a slice of an array in C order to new memory, which nothing else writes to."""
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
    """Copies a view, a transposed one by blocks of columns."""
    transposed = view.ndim > 1 and view.strides[-1] != view.itemsize
    step = _COLUMNS if transposed else max(1, math.prod(view.shape[-1:]))
    for start in range(0, max(1, math.prod(view.shape[-1:])), step):
        out[..., start : start + step] = view[..., start : start + step]


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns uninitialised memory that XLA can take ownership of without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
