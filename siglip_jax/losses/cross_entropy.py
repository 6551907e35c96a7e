"""Cross-entropy of logits with labels, of which none that is no class is taken for another, and with distributions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from siglip_jax.losses.tiles import common_dtype


def cross_entropies(logits: Float[Array, "rows classes"], labels: Int[Array, " rows"]) -> Float[Array, " rows"]:
    """Returns the softmax cross-entropy of each row; NaN for a label outside 0 to classes - 1 that is being traced.

    Args:
      logits: logits, (rows, classes) float32.
      labels: class of each row, (rows,).

    Raises:
      ValueError: if a label is outside 0 to classes - 1 and its value is known, as outside of `jax.jit`.
    """
    count = logits.shape[1]
    if not isinstance(labels, jax.core.Tracer) and labels.is_fully_addressable and labels.size:
        found = np.asarray(labels)
        if not 0 <= found.min() <= found.max() < count:
            wrong = int(found.min() if found.min() < 0 else found.max())
            raise ValueError(f"labels must be 0 to {count - 1}, got {wrong}; leave out images without a label")
    own = jnp.take_along_axis(logits, jnp.clip(labels, 0, count - 1)[:, None], axis=1)[:, 0]
    losses = jax.nn.logsumexp(logits, axis=1) - own
    return jnp.where((labels >= 0) & (labels < count), losses, jnp.nan)


def sharpen(
    logits: Float[Array, "*batch classes"], center: Float[Array, " classes"], temperature: float | Float[Array, ""]
) -> Float[Array, "*batch classes"]:
    """Returns the distributions of a teacher, the softmax of (logits - center) / temperature, without a gradient.

    Args:
      logits: logits of the teacher.
      center: moving average of its logits, which keeps every class in use.
      temperature: temperature of the softmax; a low one keeps the distributions from becoming uniform.
    """
    dtype = common_dtype(logits.dtype, jnp.float32)
    centered = logits.astype(dtype) - center.astype(dtype).reshape((1,) * (logits.ndim - 1) + (-1,))
    return lax.stop_gradient(jax.nn.softmax(_shifted(centered, temperature)[0], axis=-1))


@jax.custom_vjp
def soft_cross_entropies(
    logits: Float[Array, "*batch classes"],
    targets: Float[Array, "*#batch classes"],
    temperature: float | Float[Array, ""],
) -> Float[Array, "*batch"]:
    """Returns the cross-entropy of softmax(logits / temperature) with each distribution; only inputs are kept.

    Args:
      logits: logits, (..., classes).
      targets: distributions, (..., classes) float32 that sum to 1, broadcast over the leading axes of the logits; they
        get no gradient, nor does the temperature.
      temperature: temperature of the softmax.
    """
    return _soft_forward(logits, targets, temperature)[0]


def _soft_forward(logits: Array, targets: Array, temperature: float | Array) -> tuple[Array, Any]:
    shifted, most = _shifted(logits.astype(targets.dtype), temperature)
    log_total = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True))
    losses = jnp.sum(targets * (log_total - shifted), axis=-1)
    return losses, (logits, targets, temperature, most, log_total)


def _soft_backward(kept: Any, cotangent: Array) -> tuple[Array, None, None]:
    logits, targets, temperature, most, log_total = kept
    likely = jnp.exp((logits.astype(targets.dtype) - most) / temperature - log_total)
    slopes = cotangent[..., None] * (likely - targets) / temperature
    return slopes.astype(logits.dtype), None, None


soft_cross_entropies.defvjp(_soft_forward, _soft_backward)


def _shifted(logits: Array, temperature: float | Array) -> tuple[Array, Array]:
    """Returns (logits - largest) / temperature, and the largest: subtracted first, large logits keep their digits."""
    most = jnp.max(logits, axis=-1, keepdims=True)
    return (logits - most) / temperature, most
