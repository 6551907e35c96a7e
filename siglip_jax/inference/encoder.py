"""A tower as the engine runs it: batches of arrays in, L2-normalised embeddings out, in a few fixed sizes."""

import functools
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from siglip_jax._checks import check_count
from siglip_jax.inference.stream import Arrays, padded
from siglip_jax.models.pretrained import PretrainedModule
from siglip_jax.models.products import matmul_precision
from siglip_jax.models.siglip import normalize


class Encoder(NamedTuple):
    """A jitted tower with its parameters.

    Attributes:
      function: parameters and arrays (rows, ...) to embeddings (rows, width); `jitted` makes one.
      params: its parameters.
      width: of the embeddings.
      batch_size: rows of a batch where none is asked for.
    """

    function: Callable[..., Array]
    params: dict[str, Any]
    width: int
    batch_size: int

    def rows(self, asked: int | None) -> int:
        """Returns the rows of a batch, of which `asked` is what the user wants.

        Raises:
          ValueError: if that is no whole number of at least 1.
        """
        check_count("batch_size", asked)
        return self.batch_size if asked is None or _of_one_size() else asked

    def __call__(self, batch: Arrays, batch_size: int) -> Float[Array, "padded {self.width}"]:
        """Returns embeddings that may still be being computed; rows beyond those of the batch are padding."""
        fewest = batch_size if _of_one_size() else 1
        return self.function(self.params, *(padded(array, batch_size, fewest) for array in batch))

    def run(self, stream: Iterable[Arrays], batch_size: int) -> Float[np.ndarray, "rows {self.width}"]:
        """Returns the embeddings of a stream of batches; the next is given to the device before the last is read."""
        done = [np.zeros((0, self.width), np.float32)]
        running: deque[tuple[Array, int]] = deque()
        for batch in stream:
            running.append((self(batch, batch_size), len(batch[0])))
            if len(running) > 1:
                result, rows = running.popleft()
                done.append(np.asarray(result)[:rows])
        done.extend(np.asarray(result)[:rows] for result, rows in running)
        return np.concatenate(done)


def jitted(model: PretrainedModule, method: str, most: int | None) -> Callable[..., Array]:
    """Returns the function of an `Encoder`.

    Args:
      method: of the model, from arrays to embeddings.
      most: rows that go through the tower at a time, larger batches in several steps; None: all.
    """
    return jax.jit(functools.partial(_embed, model, method, most))


def _embed(model: PretrainedModule, method: str, most: int | None, params: dict[str, Any], *inputs: Array) -> Array:
    def step(inputs: tuple[Array, ...]) -> Array:
        embeds: Any = model.apply({"params": params}, *inputs, method=method)
        return normalize(embeds)

    rows = len(inputs[0])
    if most is None or rows <= most:
        return step(inputs)
    steps = -(-rows // most)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, [(0, steps * most - rows)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(steps, most, *x.shape[1:])

    return jax.lax.map(step, tuple(cut(x) for x in inputs)).reshape(steps * most, -1)[:rows]


def _of_one_size() -> bool:
    """Says whether results must not depend, to the bit, on the number of rows in a batch."""
    return matmul_precision() in ("highest", "float32")
