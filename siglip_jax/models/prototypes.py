"""The head of self-distillation: an MLP with a bottleneck, and prototypes that unit vectors are compared with."""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from siglip_jax.models.elementwise import ACTIVATION_FUNCTIONS
from siglip_jax.models.encoder import Options
from siglip_jax.models.products import Dense, dense_product

_SMALLEST = 1e-12  # squared length below which a vector is not stretched to length 1


class PrototypeHead(nn.Module):
    """`fc3(gelu(fc2(gelu(fc1(x)))))`, L2-normalised, and its cosine similarity with each prototype.

    Source: Caron et al. 2021, arXiv 2104.14294 (DINO), whose weight-normalised last layer has a gain of 1, as here.

    Attributes:
      prototypes: number of prototypes.
      hidden: width of the two hidden layers.
      bottleneck: width of the prototypes.
      options: how to compute.
    """

    prototypes: int
    hidden: int = 2048
    bottleneck: int = 256
    options: Options = Options()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch prototypes"]:
        """Returns the similarities, float32 whatever the compute dtype: a low temperature divides them."""
        options, init = self.options, self.options.inits.mlp
        dense = functools.partial(Dense, kernel_init=init, **options.types)
        activated = functools.partial(dense, activation=ACTIVATION_FUNCTIONS["gelu"])
        x = dense(self.hidden, name="fc1")(x)
        x = activated(self.hidden, name="fc2")(x)
        x = _unit(activated(self.bottleneck, name="fc3")(x), axis=-1)
        shape = (self.bottleneck, self.prototypes)
        columns = _unit(jnp.asarray(self.param("prototypes", init, shape, options.param_dtype)), axis=0)
        return dense_product(x.astype(options.dtype), columns.astype(options.dtype), jnp.float32)


def _unit(x: Array, axis: int) -> Array:
    """Returns float32 vectors of length 1, and zeros as they are: an image may be all zeros."""
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=axis, keepdims=True), _SMALLEST))
