"""Cross-entropy of logits with labels; a label that is no class is never taken for another one."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


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
