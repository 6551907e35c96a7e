"""Quantized models: made from a float checkpoint one weight at a time, or read from a directory that was saved so.

What a scheme is stands in `siglip_jax.quantized`, what it applies to in `siglip_jax.checkpoints.quantized`: the kernels
of all dense layers of both towers, with the attention of the pooling head, which bitsandbytes leaves in float.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from siglip_jax.checkpoints import quantized
from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.load import read_contents, select
from siglip_jax.checkpoints.mapped import release
from siglip_jax.checkpoints.table import flatten, unflatten
from siglip_jax.inference.weights import Place
from siglip_jax.models.placement import place_params
from siglip_jax.parallel.rules import RULES
from siglip_jax.quantized import Quantized, check_scheme, quantize, qwix


def open_quantized(
    architecture: str, path: Path, scheme: str | None, *, dtype: DTypeLike, mesh: Mesh | None = None
) -> tuple[Checkpoint, Place]:
    """Returns a checkpoint of views of its files, and what quantizes parts of it on their way to the device.

    Of a float model on disk, as safetensors or an uncompressed npz, one weight at a time is then in memory.

    Args:
      architecture: name of the module class.
      path: a float checkpoint of any format, or a quantized one.
      scheme: a key of `siglip_jax.quantized.SCHEMES`; None is that of a quantized checkpoint.
      dtype: of the parameters that stay float.
      mesh: lay codes and scales out over it as the kernels they stand for.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if the scheme is unknown or not that of the files, or the files are damaged.
    """
    if scheme is not None:
        check_scheme(scheme)
    qwix()  # says what is missing before anything is read
    if quantized.recognises(path):
        checkpoint = quantized.read(quantized.read_contents(path))
        stored = checkpoint.layout["scheme"]
        if scheme not in (None, stored):
            raise ValueError(
                f"{path}: expected float weights to quantize to {scheme}, found weights of {stored}; load it without"
                " quantization=, or quantize the float checkpoint"
            )
    else:
        checkpoint = select(read_contents(path), architecture)
    return checkpoint, functools.partial(_place, scheme=scheme or "", dtype=dtype, mesh=mesh)


def _place(params: Mapping[str, Any], scheme: str, dtype: DTypeLike, mesh: Mesh | None) -> dict[str, Any]:
    def placed(name: str, x: Any, dtype: DTypeLike | None) -> Any:
        return flatten(place_params(unflatten({name: x}), dtype, False, mesh, RULES))[name]

    done = {}
    for name, x in flatten(params).items():
        if not quantized.is_quantized(name):
            done[name] = placed(name, x, dtype)
            continue
        if not isinstance(x, Quantized):
            view, x = x, quantize(np.asarray(x), scheme)
            release(view)
        codes, scale = (placed(name, part, None) for part in (x.codes, x.scale))
        done[name] = dataclasses.replace(x, codes=codes, scale=scale)
    return unflatten(done)


def holds_quantized(params: Mapping[str, Any]) -> bool:
    """Says whether parameters are those of a quantized model."""
    return any(isinstance(x, Quantized) for x in flatten(params).values())
