"""Weights of 8 or 4 bits: storage, quantization and multiplication of a kernel. The arithmetic is that of qwix.

A quantized kernel replaces the float one in the tree of parameters. The schemes, with bits per weight including scales:

- int8: round(w / s), s = absmax / 127.5 of an output channel; 8 bits. Inputs are quantized too, each row by its own
  absmax, and multiplied as integers with sums in int32, which is faster than float32 on CPUs with such instructions;
  int8 weights with float inputs are not. The other schemes quantize weights only.
- fp8: float8_e4m3fn(w / s), s = absmax / 448 of an output channel; 8 bits.
- int4: round(w / s), s = absmax / 7.5 of a block of 32; 5 bits. (Blocks of 64 lost 2.1 points of zero-shot accuracy.)
- nf4: the nearest of the 16 values of QLoRA (arXiv 2305.14314, appendix E) to w / absmax of a block of 64;
  4.5 bits.

A block is 32 or 64 consecutive inputs of one output channel; the last block is padded with zeros, which both codes
represent exactly.
"""

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, UInt4, UInt8

from siglip_jax._optional import import_optional


class Scheme(NamedTuple):
    """A number format for quantized weights.

    Attributes:
      qtype: type of a code, as qwix names it: a dtype, or "nf4".
      stored: dtype of the array of codes; uint8 where two codes share a byte.
      block: number of consecutive inputs that share a scale; None: all inputs of an output channel.

    Example:
      >>> SCHEMES["int4"].block, SCHEMES["int4"].packed
      (32, True)
    """

    qtype: Any
    stored: np.dtype
    block: int | None = None

    @property
    def packed(self) -> bool:
        """Whether a byte holds two codes."""
        return self.stored == np.uint8


SCHEMES = {
    "int8": Scheme(jnp.int8, np.dtype(np.int8)),
    "int4": Scheme(jnp.int4, np.dtype(np.uint8), 32),
    "nf4": Scheme("nf4", np.dtype(np.uint8), 64),
    "fp8": Scheme(jnp.float8_e4m3fn, np.dtype(ml_dtypes.float8_e4m3fn)),
}
"""The schemes by name; the module's docstring compares them."""


@flax.struct.dataclass
class Quantized:
    """A quantized kernel of a dense layer; a pytree node whose leaves are `codes` and `scale`.

    Attributes:
      codes: (rows, columns) in the dtype of the scheme, rows being inputs; for the schemes of four bits
        (padded rows / 2, columns) uint8, with row 2i in the upper four bits and row 2i + 1 in the lower.
      scale: (1, columns) float32, or (blocks, columns) float32 for the schemes with blocks.
      scheme: scheme of the codes, a key of `SCHEMES`.
      rows: number of inputs, without padding.

    Example:
      >>> kernel = quantize(np.ones((100, 8), np.float32), "nf4")
      >>> kernel.shape, kernel.codes.shape, kernel.scale.shape
      ((100, 8), (64, 8), (2, 8))
    """

    codes: Any  # arrays, or what a tree transformation replaces them with
    scale: Any
    scheme: str = flax.struct.field(pytree_node=False)
    rows: int = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the float kernel, (inputs, outputs)."""
        return self.rows, self.codes.shape[1]

    @property
    def nbytes(self) -> int:
        """Size of the codes and scales in bytes."""
        return self.codes.nbytes + self.scale.nbytes


def check_scheme(scheme: object) -> None:
    """Raises a `ValueError` unless `scheme` is a key of `SCHEMES`."""
    if scheme not in SCHEMES:
        raise ValueError(f"quantization must be None or one of {', '.join(map(repr, SCHEMES))}, got {scheme!r}")


def stored_shapes(shape: tuple[int, ...], scheme: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the shapes of `codes` and `scale` for a kernel of shape (rows, columns)."""
    rows, columns = shape
    if not SCHEMES[scheme].packed:
        return (rows, columns), (1, columns)
    block, padded = _blocks(rows, scheme)
    return (padded // 2, columns), (padded // block, columns)


def quantize(kernel: ArrayLike, scheme: str) -> Quantized:
    """Quantizes the kernel of a dense layer.

    Args:
      kernel: (inputs, outputs) of any floating dtype; converted to float32 first.
      scheme: number format, a key of `SCHEMES`: "int8", "int4", "nf4" or "fp8".

    Returns:
      The codes and scales of the kernel.

    Raises:
      ValueError: if the scheme is unknown, or qwix is not installed.

    Example:
      >>> kernel = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
      >>> quantized = quantize(kernel, "int8")
      >>> str(quantized.codes.dtype), quantized.nbytes
      ('int8', 24)
    """
    check_scheme(scheme)
    rows = np.shape(kernel)[0]
    codes, scale = _quantize(jnp.asarray(kernel, jnp.float32), scheme)
    return Quantized(codes, scale, scheme, rows)


def dequantize(kernel: Quantized) -> Float[Array, "rows columns"]:
    """Returns the float kernel that quantized codes represent.

    Args:
      kernel: quantized kernel of any scheme.

    Returns:
      (inputs, outputs) float32.

    Example:
      >>> kernel = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
      >>> error = dequantize(quantize(kernel, "int8")) - kernel
      >>> bool(abs(error).max() < 0.01)
      True
    """
    return qwix().dequantize(_qarray(kernel))[: kernel.rows]


def multiply_int8(x: Float[Array, "*batch rows"], kernel: Quantized) -> Float[Array, "*batch columns"]:
    """Multiplies inputs by an int8 kernel in integer arithmetic.

    Each row of the inputs is quantized to int8 by its own absmax; products are summed in int32.

    Args:
      x: inputs, (..., inputs) of any floating dtype.
      kernel: quantized kernel of the scheme "int8".

    Returns:
      The product, (..., outputs) in the dtype of `x`.

    Example:
      >>> kernel = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
      >>> y = multiply_int8(jnp.ones((2, 4)), quantize(kernel, "int8"))
      >>> y.shape, bool(abs(y - kernel.sum(0, keepdims=True)).max() < 0.05)
      ((2, 3), True)
    """
    flat = x.reshape(-1, kernel.rows).astype(jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # qwix relies on it
        inputs = qwix().quantize(flat, jnp.int8, channelwise_axes=(0,))
        y = qwix().dot_general(inputs, _qarray(kernel), (((1,), (0,)), ((), ())))
    return y.astype(x.dtype).reshape(*x.shape[:-1], -1)


@functools.cache
def qwix() -> Any:
    """Imports qwix; raises a `ValueError` if it is not installed."""
    return import_optional("qwix", "quantization", "quant")


def _blocks(rows: int, scheme: str) -> tuple[int, int]:
    """Returns the number of rows of a block, and of all rows with padding."""
    block = min(SCHEMES[scheme].block or rows, rows + rows % 2)
    return block, -(-rows // block) * block


@functools.partial(jax.jit, static_argnums=1)
def _quantize(kernel: Array, scheme: str) -> tuple[Array, Array]:
    rows, qtype = kernel.shape[0], SCHEMES[scheme].qtype
    if not SCHEMES[scheme].packed:
        made = qwix().quantize(kernel, qtype, channelwise_axes=(1,))
        return made.qvalue, made.scale
    block, padded = _blocks(rows, scheme)
    kernel = jnp.pad(kernel, ((0, padded - rows), (0, 0)))
    made = qwix().quantize(kernel, qtype, channelwise_axes=(1,), tiled_axes={0: block})
    return _pack(made.qvalue.astype(jnp.int8).astype(jnp.uint8)), made.scale


def _pack(codes: UInt8[Array, "rows columns"]) -> UInt8[Array, "half columns"]:
    return (codes[0::2] << 4) | (codes[1::2] & 15)


def _unpack(codes: UInt8[Array, "half columns"]) -> UInt4[Array, "rows columns"]:
    both = jnp.stack([codes >> 4, codes & 15], axis=1)
    return both.reshape(-1, codes.shape[1]).astype(jnp.uint4)


def _qarray(kernel: Quantized) -> Any:
    scheme, codes = SCHEMES[kernel.scheme], kernel.codes
    if scheme.packed:
        codes = _unpack(codes)
        if kernel.scheme == "int4":
            codes = jax.lax.bitcast_convert_type(codes, jnp.int4)
    return qwix().QArray(codes, kernel.scale, qtype=scheme.qtype)
