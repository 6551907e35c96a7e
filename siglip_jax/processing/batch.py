"""The dictionary that tokenizers and image processors return.

`Batch` replaces the reference's `BatchEncoding` and `BatchFeature`: it is a dictionary whose keys are also attributes,
and nothing more.
"""

from collections.abc import Iterable
from typing import Any

import jax


@jax.tree_util.register_pytree_with_keys_class
class Batch(dict[str, Any]):
    """A dictionary of arrays or lists whose keys are also attributes: `batch.input_ids` is `batch["input_ids"]`.

    It is a pytree with the leaves and key paths of a dictionary, so it passes through `jax.jit` and `jax.device_put`.

    Example:
      >>> import numpy as np
      >>> batch = Batch(input_ids=np.array([[4, 1]], np.int32))
      >>> batch.input_ids.shape
      (1, 2)
      >>> jax.tree.map(lambda ids: ids + 1, batch).input_ids.tolist()
      [[5, 2]]
    """

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], tuple[str, ...]]:
        """Returns the (key, value) pairs sorted by name, and the names; JAX calls this method."""
        names = tuple(sorted(self))
        return tuple((jax.tree_util.DictKey(name), self[name]) for name in names), names

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], values: Iterable[Any]) -> "Batch":
        """Returns the batch of some names and values; the inverse of `tree_flatten_with_keys`.

        Args:
          names: keys of the batch.
          values: the value of each key, in the same order.
        """
        return cls(zip(names, values, strict=True))

    def __getattr__(self, name: str) -> Any:
        """Returns the value of a key."""
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} in this batch; it has {sorted(self)}") from None
