"""The type checker of the tests: beartype, which writes the checks of a nested function once, not at each call."""

from collections.abc import Callable
from typing import Any

from beartype import beartype

_written: dict[Any, Callable[..., Any]] = {}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that checks the types of arguments and result.

    Args:
      function: what jaxtyping makes of a function: its signature without its body. So that of a nested function, which
        is defined anew at each call of the outer one, serves all its definitions that have the same annotations.
    """
    if "<locals>" not in function.__qualname__:
        return beartype(function)
    code = function.__code__
    parameters = code.co_varnames, code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount
    key = function.__module__, function.__qualname__, parameters, tuple(function.__annotations__.items())
    if key not in _written:
        _written[key] = beartype(function)
    return _written[key]
