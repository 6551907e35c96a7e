"""One tower as the engine runs it: batches of a few fixed sizes in, L2-normalised embeddings out."""

import functools
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from siglip_jax._checks import check_count
from siglip_jax.inference.stream import Arrays, padded
from siglip_jax.models.elementwise import normalize
from siglip_jax.models.pretrained import PretrainedModule
from siglip_jax.models.products import matmul_precision


class NotFiniteError(ValueError):
    """Raised for an input whose embedding holds NaN or infinity, with which every comparison is silently wrong."""

    def __init__(self, name: str) -> None:
        """Makes the message from the name of the input."""
        super().__init__(
            f"{name}: the embedding must be finite, got NaN or infinity; check the weights, or use a dtype of a larger"
            " range, such as float32"
        )


class Encoder(NamedTuple):
    """A jitted tower with its parameters.

    Attributes:
      function: function from parameters and arrays (rows, ...) to embeddings (rows, width), as `jitted` returns it.
      params: parameters of the tower, a nested dict of arrays.
      width: width of an embedding.
      batch_size: default number of rows of a batch.
      inputs: name of the inputs, "images" or "texts", for errors.
    """

    function: Callable[..., Array]
    params: dict[str, Any]
    width: int
    batch_size: int
    inputs: str

    def rows(self, asked: int | None) -> int:
        """Returns the number of rows of a batch.

        Args:
          asked: batch size that the user passed, ignored where all batches must have one size; None: the default.

        Raises:
          ValueError: if `asked` is not an integer of at least 1.
        """
        check_count("batch_size", asked)
        return self.batch_size if asked is None or _of_one_size() else asked

    def __call__(self, batch: Arrays, batch_size: int) -> Float[Array, "padded {self.width}"]:
        """Returns the embeddings of a batch without waiting for them; rows beyond those of the batch are padding."""
        fewest = batch_size if _of_one_size() else 1
        return self.function(self.params, *(padded(array, batch_size, fewest) for array in batch))

    def run(
        self, stream: Iterable[Arrays], batch_size: int, on_not_finite: Callable[[int], object] | None = None
    ) -> Float[np.ndarray, "rows {self.width}"]:
        """Returns the embeddings of a stream of batches; each batch is sent before the result of the last is read.

        Args:
          stream: batches of inputs.
          batch_size: largest number of rows of a batch.
          on_not_finite: called with the number of each row whose embedding holds NaN or infinity; None: an error.

        Raises:
          NotFiniteError: if an embedding is not finite and `on_not_finite` is None.
        """
        done, rows = [np.zeros((0, self.width), np.float32)], 0
        running: deque[tuple[Array, int]] = deque()

        def fetch() -> None:
            nonlocal rows
            result, count = running.popleft()
            embeds = np.asarray(result)[:count]
            for row in (rows + not_finite(embeds)).tolist():
                if on_not_finite is None:
                    raise NotFiniteError(f"{self.inputs}[{row}]")
                on_not_finite(row)
            done.append(embeds)
            rows += count

        for batch in stream:
            running.append((self(batch, batch_size), len(batch[0])))
            if len(running) > 1:
                fetch()
        while running:
            fetch()
        return np.concatenate(done)


def not_finite(embeds: Float[np.ndarray, "rows embed"]) -> Int[np.ndarray, " found"]:
    """Returns the numbers of the rows that hold NaN or infinity."""
    return np.flatnonzero(~np.isfinite(embeds).all(axis=1))


def jitted(
    model: PretrainedModule, method: str | Callable[..., Array], most: int | None, *, normalized: bool = True
) -> Callable[..., Array]:
    """Returns the function of an `Encoder`.

    Args:
      model: module with the tower.
      method: name of the module's method from arrays to embeddings, or a function of the module and the arrays.
      most: largest number of rows that the tower processes at once, larger batches in several steps; None: no limit.
      normalized: whether the rows are divided by their L2 norms.
    """
    return jax.jit(functools.partial(_embed, model, method, most, normalized))


def _embed(
    model: PretrainedModule,
    method: str | Callable[..., Array],
    most: int | None,
    normalized: bool,
    params: dict[str, Any],
    *inputs: Array,
) -> Array:
    """Returns the embeddings of a batch, computed in steps of `most` rows."""

    def step(inputs: tuple[Array, ...]) -> Array:
        embeds: Any = model.apply({"params": params}, *inputs, method=method)
        return normalize(embeds) if normalized else embeds.astype(jnp.float32)

    rows = len(inputs[0])
    if most is None or rows <= most:
        return step(inputs)
    steps = -(-rows // most)

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, steps * most - rows)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(steps, most, *x.shape[1:])

    return jax.lax.map(step, tuple(split(x) for x in inputs)).reshape(steps * most, -1)[:rows]


def _of_one_size() -> bool:
    """Returns whether all batches must have one size, so that no bit of a result depends on the number of rows."""
    return matmul_precision() in ("highest", "float32")
