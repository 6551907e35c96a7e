"""Checks of arguments that several packages share; each raises a `ValueError` with a one-line message."""

import difflib
from collections.abc import Iterable

DTYPES = ("float32", "bfloat16", "float16")  # of parameters and of the computation, by name


def refuse_unknown(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raises a `ValueError` for the first unknown argument; the message names the closest known one.

    Args:
      given: names of the passed arguments.
      known: names of the accepted arguments.
      what: name of the function or class, for the error.
    """
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{what}: unknown argument {name!r}; {hint}known: {', '.join(known)}")


def check_choice(name: str, value: object, allowed: Iterable[object]) -> None:
    """Raises a `ValueError` unless a value equals one of the allowed ones and has the same type.

    Args:
      name: name of the argument, for the error.
      value: passed value.
      allowed: accepted values.
    """
    allowed = list(allowed)
    if not any(value is a or (type(value) is type(a) and value == a) for a in allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_count(name: str, value: int | None) -> None:
    """Raises a `ValueError` unless a value is None or an integer of at least 1.

    Args:
      name: name of the argument, for the error.
      value: passed value.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} must be an integer of at least 1 or None, got {value!r}")
