"""Matrix products in bfloat16 and float16 that are fast on a CPU forward and backward, with sums in float32.

XLA differentiates such a product on a CPU into loops over single numbers, with which a training step takes several
times as long as in float32. Here the gradient of a product is two more products. Which products a platform gets is
decided where the program is lowered for it, so that a program for an accelerator can be compiled on any machine.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from siglip_jax.models.elementwise import compute_again, keeping_input
from siglip_jax.models.initializers import Initializer
from siglip_jax.quantization.schemes import Quantized, dequantize, multiply_int8

PRODUCT = "product"  # name of the outputs of dense layers for `jax.checkpoint`
Activation = Callable[[Array], Array]
_CPUINFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86, Arm


@functools.cache
def cpu_multiplies_bfloat16(cpuinfo: Path = _CPUINFO) -> bool:
    """Returns whether this CPU has instructions for products of bfloat16; False where that is unknown."""
    try:
        return not _INSTRUCTIONS.isdisjoint(cpuinfo.read_text().split())
    except OSError:
        return False


def float32_matmul(x: Float[Array, "*batch m k"], y: Float[Array, "*batch k n"]) -> Float[Array, "*batch m n"]:
    """Returns the product of two arrays in float32, or in their dtype if wider; gradients have their dtypes."""
    return _narrow_matmul(jnp.dtype(jnp.float32), x, y) if x.dtype.itemsize < 4 else jnp.matmul(x, y)


def matmul(x: Float[Array, "*batch m k"], y: Float[Array, "*batch k n"]) -> Float[Array, "*batch m n"]:
    """Returns the product of two arrays in their dtype."""
    return _narrow_matmul(x.dtype, x, y) if x.dtype.itemsize < 4 else jnp.matmul(x, y)


def _product(dtype: Any, x: Array, y: Array) -> Array:
    """Returns a product of narrow arrays in a dtype, lowered for each platform as it is fastest there."""

    elsewhere = functools.partial(jnp.matmul, preferred_element_type=dtype)
    return lax.platform_dependent(x, y, cpu=functools.partial(_product_on_cpu, dtype), default=elsewhere)


def _product_on_cpu(dtype: Any, x: Array, y: Array) -> Array:
    return jnp.matmul(_operand(x), _operand(y), preferred_element_type=jnp.float32).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _narrow_matmul(dtype: Any, x: Array, y: Array) -> Array:
    return _product(dtype, x, y)


def _forward(dtype: Any, x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(dtype, x, y), (x, y)


def _backward(dtype: Any, arrays: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, y = arrays
    g = cotangent.astype(x.dtype)
    return _product(x.dtype, g, jnp.swapaxes(y, -1, -2)), _product(y.dtype, jnp.swapaxes(x, -1, -2), g)


_narrow_matmul.defvjp(_forward, _backward)


def _operand(x: Array) -> Array:
    """Returns an operand in float32 on a CPU without the instructions, where narrower dtypes are slower still."""
    return x if x.dtype == jnp.bfloat16 and cpu_multiplies_bfloat16() else x.astype(jnp.float32)


def matmul_precision() -> str:
    """Returns the current default precision of products in JAX."""
    return jax.config.jax_default_matmul_precision or "default"  # type: ignore[missing-attribute]


def describe_products(dtype: DTypeLike, platform: str) -> str:
    """Describes how matrices of a dtype are multiplied on a platform, such as "cpu"."""
    dtype = jnp.dtype(dtype)
    if platform != "cpu" or dtype.itemsize >= 4:
        return f"{dtype.name} at {matmul_precision()} precision"
    if dtype == jnp.bfloat16 and cpu_multiplies_bfloat16():
        return "bfloat16, sums in float32"
    return f"float32: this CPU has no instructions for {dtype.name}"


def dense_product(x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs outputs"], dtype: DTypeLike) -> Array:
    """Returns the product of an array and a matrix of the same dtype, (..., outputs), rounded to `dtype`.

    Args:
      x: inputs.
      kernel: matrix.
      dtype: dtype of the result, that of the inputs or float32.
    """
    if x.dtype.itemsize < 4:
        return _narrow_dense(jnp.dtype(dtype), x, kernel)
    return _dense(jnp.dtype(dtype), x, kernel)


def _dense(dtype: Any, x: Array, kernel: Array) -> Array:
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _narrow_dense(dtype: Any, x: Array, kernel: Array) -> Array:
    def on_cpu(x: Array, kernel: Array) -> Array:
        return _product_on_cpu(dtype, _rows(x), kernel).reshape(*x.shape[:-1], -1)

    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=functools.partial(_dense, dtype))


def _dense_forward(dtype: Any, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _narrow_dense(dtype, x, kernel), (x, kernel)


def _dense_backward(dtype: Any, kept: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = kept
    g = cotangent.astype(x.dtype)

    def on_cpu(x: Array, g: Array) -> Array:
        return _product_on_cpu(x.dtype, _rows(x).T, _rows(g))

    def elsewhere(x: Array, g: Array) -> Array:
        leading = tuple(range(x.ndim - 1))
        return lax.dot_general(x, g, ((leading, leading), ((), ())))

    of_kernel = lax.platform_dependent(x, g, cpu=on_cpu, default=elsewhere)
    return _narrow_dense(x.dtype, g, kernel.T), of_kernel


_narrow_dense.defvjp(_dense_forward, _dense_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product_of_activated(activation: Activation, dtype: Any, x: Array, kernel: Array) -> Array:
    """Returns the product of what an activation function returns, which the backward pass computes again."""
    return dense_product(activation(x), kernel, dtype)


def _activated_forward(activation: Activation, dtype: Any, x: Array, kernel: Array) -> tuple[Array, Any]:
    return dense_product(activation(x), kernel, dtype), (x, kernel)


def _activated_backward(activation: Activation, dtype: Any, kept: Any, cotangent: Array) -> tuple[Array, Array]:
    x, kernel = kept
    y, pull = jax.vjp(activation, compute_again(x))
    of_y, of_kernel = jax.vjp(functools.partial(dense_product, dtype=dtype), y, kernel)[1](cotangent)
    return *pull(of_y), of_kernel


_product_of_activated.defvjp(_activated_forward, _activated_backward)


def _rows(x: Array) -> Array:
    """Returns an array (..., width) as a matrix."""
    return x.reshape(-1, x.shape[-1])


class Dense(nn.Module):
    """A linear layer as `flax.linen.Dense`, with the products of this file and kernels that may be quantized.

    A quantized kernel is loaded, never initialised. Kernels of int8 multiply as integers, others are dequantized first.
    With an `activation` the layer is that of `activation(x)`, of which only `x` is kept for the backward pass.
    """

    features: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros
    activation: Activation | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch features"]:
        x = x.astype(self.dtype)
        kernel = self._kernel(x.shape[-1])
        if isinstance(kernel, Quantized) and kernel.scheme == "int8":
            y = multiply_int8(self.activated(x), kernel)
        elif self.activation:
            y = _product_of_activated(self.activation, jnp.dtype(self.dtype), x, self._in_dtype(kernel))
        else:
            y = dense_product(x, self._in_dtype(kernel), self.dtype)
        y = checkpoint_name(y, PRODUCT)
        if self.use_bias:
            y = y + self._bias().reshape((1,) * (y.ndim - 1) + (-1,))
        return y

    def activated(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch inputs"]:
        """Returns what the kernel multiplies."""
        return keeping_input(self.activation)(x) if self.activation else x

    def _kernel(self, inputs: int) -> Any:
        """Returns the kernel, a quantized one as it is."""
        kernel: Any = self.get_variable("params", "kernel")
        if isinstance(kernel, Quantized):
            return kernel
        return self.param("kernel", self.kernel_init, (inputs, self.features), self.param_dtype)

    def _in_dtype(self, kernel: Any) -> Array:
        kernel = dequantize(kernel) if isinstance(kernel, Quantized) else kernel
        return jnp.asarray(kernel).astype(self.dtype)

    def _bias(self) -> Array:
        return jnp.asarray(self.param("bias", self.bias_init, (self.features,), self.param_dtype)).astype(self.dtype)


class Projection(Dense):
    """The kernel and the bias of a `Dense`, in the compute dtype, for products that are rearranged."""

    @nn.compact
    def __call__(self, inputs: int) -> tuple[Float[Array, "inputs features"], Float[Array, " features"]]:
        return self._in_dtype(self._kernel(inputs)), self._bias()
