"""Matrix products in bfloat16 and float16 that are fast on a CPU forward and backward, with sums in float32.

XLA differentiates such a product on a CPU into loops over single numbers, with which a training step takes several
times as long as in float32. Here the gradient of a product is two more products.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from siglip_jax.models.initializers import Initializer
from siglip_jax.quantization.schemes import Quantized, dequantize, multiply_int8

_CPUINFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86, Arm
_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def computing_for(platform: str) -> Iterator[None]:
    """Traces for a platform ("cpu", "cuda", …) other than that of the default device within this context."""
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def on_cpu() -> bool:
    """Returns whether the current trace is for a CPU."""
    return (_PLATFORM.get() or jax.default_backend()) == "cpu"


@functools.cache
def cpu_multiplies_bfloat16(cpuinfo: Path = _CPUINFO) -> bool:
    """Returns whether this CPU has instructions for products of bfloat16; False where that is unknown."""
    try:
        return not _INSTRUCTIONS.isdisjoint(cpuinfo.read_text().split())
    except OSError:
        return False


def float32_matmul(x: Float[Array, "*batch m k"], y: Float[Array, "*batch k n"]) -> Float[Array, "*batch m n"]:
    """Returns the product of two arrays in float32, or in their dtype if wider; gradients have their dtypes."""
    return _narrow_matmul(x, y) if x.dtype.itemsize < 4 else jnp.matmul(x, y)


@jax.custom_vjp
def _narrow_matmul(x: Array, y: Array) -> Array:
    return jnp.matmul(_operand(x), _operand(y), preferred_element_type=jnp.float32)


def _forward(x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return _narrow_matmul(x, y), (x, y)


def _backward(arrays: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, y = arrays
    g = _operand(cotangent.astype(x.dtype))
    of_x = jnp.matmul(g, jnp.swapaxes(_operand(y), -1, -2), preferred_element_type=jnp.float32)
    of_y = jnp.matmul(jnp.swapaxes(_operand(x), -1, -2), g, preferred_element_type=jnp.float32)
    return of_x.astype(x.dtype), of_y.astype(y.dtype)


_narrow_matmul.defvjp(_forward, _backward)


def _operand(x: Array) -> Array:
    """Returns an operand in float32 on a CPU without the instructions, where narrower dtypes are slower still."""
    native = x.dtype == jnp.bfloat16 and cpu_multiplies_bfloat16()
    return x.astype(jnp.float32) if _narrow_on_cpu(x) and not native else x


def _narrow_on_cpu(x: Array) -> bool:
    return on_cpu() and x.dtype.itemsize < 4


def matmul_precision() -> str:
    """Returns the current default precision of products in JAX."""
    return jax.config.jax_default_matmul_precision or "default"  # type: ignore[missing-attribute]


def describe_products(dtype: DTypeLike) -> str:
    """Describes how matrices of a dtype are multiplied on the default device."""
    dtype = jnp.dtype(dtype)
    if jax.default_backend() != "cpu" or dtype.itemsize >= 4:
        return f"{dtype.name} at {matmul_precision()} precision"
    if dtype == jnp.bfloat16 and cpu_multiplies_bfloat16():
        return "bfloat16, sums in float32"
    return f"float32: this CPU has no instructions for {dtype.name}"


def matmul(x: Float[Array, "*batch m k"], y: Float[Array, "*batch k n"]) -> Float[Array, "*batch m n"]:
    """Returns the product of two arrays in their dtype."""
    return float32_matmul(x, y).astype(x.dtype) if _narrow_on_cpu(x) else jnp.matmul(x, y)


def _dense(x: Array, kernel: Array) -> Array:
    if not _narrow_on_cpu(x):
        return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    return matmul(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


class Dense(nn.Module):
    """A linear layer as `flax.linen.Dense`, with the products of this file and kernels that may be quantized.

    A quantized kernel is loaded, never initialised. Kernels of int8 multiply as integers, others are dequantized first.
    """

    features: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch features"]:
        x = x.astype(self.dtype)
        kernel: Any = self.get_variable("params", "kernel")
        if isinstance(kernel, Quantized) and kernel.scheme == "int8":
            y = multiply_int8(x, kernel)
        else:
            if isinstance(kernel, Quantized):
                kernel = dequantize(kernel)
            else:
                kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
            y = _dense(x, jnp.asarray(kernel).astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
            y = y + bias.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
        return y
