"""What the processors return, and how they refuse an argument they do not know.

`Batch` stands for the reference's `BatchEncoding` and `BatchFeature`: a dictionary whose keys are attributes too, and
nothing more.
"""

from collections.abc import Iterable
from typing import Any

import jax


@jax.tree_util.register_pytree_with_keys_class
class Batch(dict[str, Any]):
    """A dictionary of arrays or lists, and a pytree as that is; `batch.input_ids` is `batch["input_ids"]`."""

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], tuple[str, ...]]:
        """Returns the values with their keys, in sorted order."""
        names = tuple(sorted(self))
        return tuple((jax.tree_util.DictKey(name), self[name]) for name in names), names

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], values: Iterable[Any]) -> "Batch":
        """The inverse of flattening."""
        return cls(zip(names, values, strict=True))

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} in this batch; it has {sorted(self)}") from None
