"""Initialisation of parameters as in the paper (big_vision) or as in `transformers`.

They differ where `transformers` departs from the code it was ported from: temperature and bias of the loss, the packed
projection of the pooling head, its probe, and an untruncated "lecun" normal (`SiglipPreTrainedModel._init_weights`).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import Initializer
from jax.typing import DTypeLike

# transformers divides by the standard deviation of a normal truncated at two sigmas but truncates at the absolute
# values +-2, which has no effect: its "lecun" normal is too wide by the inverse of this factor.
_UNTRUNCATED = 0.87962566103423978


class Initializers(NamedTuple):
    """One initialiser per kind of parameter; biases that are not listed start at zero."""

    logit_scale: Initializer
    logit_bias: Initializer
    probe: Initializer
    pool_qkv: Initializer
    pool_out: Initializer
    patch: Initializer
    projection: Initializer
    classifier: Initializer
    embedding: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
    attention: Initializer = nn.initializers.xavier_uniform()
    mlp: Initializer = nn.initializers.xavier_uniform()
    mlp_bias: Initializer = nn.initializers.normal(1e-6)


def initializers(scheme: str, factor: float = 1.0) -> Initializers:
    """Returns the initialisers of a scheme.

    Args:
      scheme: "paper" or "reference".
      factor: `initializer_factor` of the reference's configuration, which scales its classifier.

    Raises:
      ValueError: if the scheme is unknown.
    """
    if scheme == "paper":
        return Initializers(
            logit_scale=nn.initializers.constant(math.log(10.0)),
            logit_bias=nn.initializers.constant(-10.0),
            probe=nn.initializers.xavier_uniform(),
            pool_qkv=nn.initializers.xavier_uniform(),
            pool_out=nn.initializers.xavier_uniform(),
            patch=nn.initializers.lecun_normal(),
            projection=nn.initializers.lecun_normal(),
            classifier=nn.initializers.zeros,
        )
    if scheme == "reference":
        lecun = nn.initializers.variance_scaling(1.0 / _UNTRUNCATED**2, "fan_in", "normal")
        return Initializers(
            logit_scale=nn.initializers.zeros,
            logit_bias=nn.initializers.zeros,
            probe=lambda key, shape, dtype=jnp.float32: _uniform(key, shape, dtype, math.sqrt(6 / (2 * shape[-1]))),
            pool_qkv=lambda key, shape, dtype=jnp.float32: _uniform(key, shape, dtype, math.sqrt(6 / (4 * shape[-1]))),
            pool_out=lecun,
            patch=lecun,
            projection=lecun,
            classifier=nn.initializers.variance_scaling(factor**2, "fan_in", "normal"),
        )
    raise ValueError(f"init_scheme must be 'paper' or 'reference', got {scheme!r}")


def _uniform(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike, bound: float) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)
