"""LoRA: low-rank additions to the frozen matrices of a model (Hu et al. 2021, arXiv 2106.09685).

The additions are a separate tree with `a` (in, rank) and `b` (rank, out) at the path of each dense layer. They act on
the activations, so that the gradient of a frozen matrix is never computed. `merge` folds them into the matrices.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from siglip_jax.models.products import Dense, Projection
from siglip_jax.params import flatten, unflatten
from siglip_jax.rules import match_rules
from siglip_jax.training.recipe import Lora


def init_lora(key: Key[Array, ""], options: Lora, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns initial additions, which leave the model unchanged: `a` is random, `b` is zero.

    Args:
      key: random key of `a`.
      options: rank of the additions, and the pattern of the layers that get one.
      params: parameters of the model, a nested dict without stacked layers.

    Returns:
      A nested dict with `a` (in, rank) and `b` (rank, out) float32 for each layer.

    Raises:
      ValueError: if the pattern matches no dense layer.
    """
    found: dict[str, Array] = {}
    flat = flatten(params)
    layers = {path.removesuffix("/kernel"): x for path, x in flat.items() if path.endswith("/kernel") and x.ndim == 2}
    adapted = match_rules(((options.where, True), (".*", False)), layers, "lora.where")
    for layer in sorted(layer for layer, wanted in adapted.items() if wanted):
        kernel = layers[layer]
        key, draw = jax.random.split(key)
        rows, columns = kernel.shape
        a = jax.random.normal(draw, (rows, options.rank), jnp.float32) / rows**0.5
        found |= {f"{layer}/a": a, f"{layer}/b": jnp.zeros((options.rank, columns), jnp.float32)}
    return unflatten(found)


def added(options: Lora, additions: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Returns a context within which dense layers of linen modules add the low-rank product to their outputs.

    Args:
      options: scale of the additions.
      additions: nested dict with `a` and `b` for each layer, as from `init_lora`.
    """
    scale, parts = options.alpha / options.rank, flatten(additions)

    def intercept(
        call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
        y = call(*args, **kwargs)
        if not isinstance(context.module, Dense) or context.method_name != "__call__":
            return y
        layer = "/".join(context.module.path)
        if f"{layer}/a" not in parts:
            return y
        if isinstance(context.module, Projection):
            kernel, bias = y
            product = jnp.matmul(parts[f"{layer}/a"], parts[f"{layer}/b"], precision="highest")
            return kernel + (product * scale).astype(kernel.dtype), bias
        x: Array = context.module.activated(args[0])
        a, b = (parts[f"{layer}/{name}"].astype(y.dtype) for name in "ab")
        return y + (x.astype(y.dtype) @ a @ b) * jnp.asarray(scale, y.dtype)

    return nn.intercept_methods(intercept)


def merge(options: Lora, params: Mapping[str, Any], additions: Mapping[str, Any]) -> dict[str, Any]:
    """Returns parameters with the additions folded into the matrices, for a model without LoRA.

    Args:
      options: scale of the additions.
      params: parameters of the model, a nested dict.
      additions: nested dict with `a` and `b` for each layer.
    """
    flat, parts = flatten(params), flatten(additions)
    for layer in (path.removesuffix("/a") for path in parts if path.endswith("/a")):
        kernel: Float[Array, "rows columns"] = flat[f"{layer}/kernel"]
        product = jnp.matmul(parts[f"{layer}/a"], parts[f"{layer}/b"], precision="highest")
        product = product * (options.alpha / options.rank)
        flat[f"{layer}/kernel"] = (kernel.astype(jnp.float32) + product).astype(kernel.dtype)
    return unflatten(flat)
