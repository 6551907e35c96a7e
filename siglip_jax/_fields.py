"""Types of the fields of configuration files, checked in one place, with the file and the field in the error."""

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from siglip_jax._checks import shown

MOST = 2**20  # of lengths and counts; no model of this family comes near
MOST_PIXELS = 65_535  # of a side
MOST_IDS = 2**31  # ids are int32


class Kind(NamedTuple):
    """What a field may hold besides None, which stands for a field that is not set.

    Attributes:
      name: what it is, for the error: "a finite number".
      holds: function from a value to whether it is of this kind.
    """

    name: str
    holds: Callable[[Any], bool]


def _is_integer(value: Any, least: int, most: int) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and least <= int(value) <= most


def _is_finite(value: Any) -> bool:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the floats
        return False


def integer(least: int, most: int) -> Kind:
    """Returns the kind of integers from `least` to `most`."""
    return Kind(f"an integer from {least} to {most}", lambda value: _is_integer(value, least, most))


def one_of(*choices: str) -> Kind:
    """Returns the kind of some strings."""
    return Kind(f"one of {', '.join(map(repr, choices))}", lambda value: isinstance(value, str) and value in choices)


def list_of(kind: Kind, what: str) -> Kind:
    """Returns the kind of lists whose entries are of a kind.

    Args:
      kind: kind of each entry.
      what: name of the entries, for the error: "strings".
    """
    return Kind(f"a list of {what}", lambda value: isinstance(value, (list, tuple)) and all(map(kind.holds, value)))


BOOLEAN = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a string", lambda value: isinstance(value, str))
NUMBER = Kind("a finite number", _is_finite)
COUNT = integer(1, MOST)
PIXELS = integer(1, MOST_PIXELS)
TEXTS = list_of(TEXT, "strings")


def check_fields(where: object, values: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Raises a `ValueError` for the first field that holds neither None nor a value of its kind.

    Args:
      where: file or class of the fields, with which the error begins.
      values: value of each field; fields without a kind are not checked.
      kinds: kind of each field.
    """
    for name, kind in kinds.items():
        value = values.get(name)
        if value is not None and not kind.holds(value):
            raise ValueError(f"{where}: {name} must be {kind.name}, got {shown(value)}")
