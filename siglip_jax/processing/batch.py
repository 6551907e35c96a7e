"""What the processors return, and how they refuse an argument they do not know.

`Batch` stands for the reference's `BatchEncoding` and `BatchFeature`: a dictionary whose keys are attributes too, and
nothing more.
"""

import difflib
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


def refuse_unknown(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raises a ValueError that names the first unknown argument and the known one nearest to it."""
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{what}: unknown argument {name!r}; {hint}known: {', '.join(known)}")


def one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Raises a ValueError unless `value` is one of the allowed ones."""
    allowed = list(allowed)
    if not any(value is a or (type(value) is type(a) and value == a) for a in allowed):
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, found {value!r}")
