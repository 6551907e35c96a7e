"""Checks of arguments that several packages share; each raises a `ValueError` with a one-line message."""

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

import ml_dtypes  # noqa: F401  # gives numpy the name bfloat16
import numpy as np

DTYPES = ("float32", "bfloat16", "float16")  # of parameters and of the computation, by name
QUANTIZATIONS = ("int8", "int4", "nf4", "fp8")  # number formats of quantized weights, by name


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def shown(value: object) -> str:
    """Returns the `repr` of a value that comes from a file, cut to what fits an error message.

    Args:
      value: any value.
    """
    text = _SHORT.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def reason(error: Exception) -> str:
    """Returns the message of another library's error in one line, cut to what fits an error message.

    Args:
      error: the error.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."


def float_dtype(name: str, value: Any) -> np.dtype:
    """Returns a floating-point dtype by its name or class.

    Args:
      name: name of the argument, for the error.
      value: passed value, such as "bfloat16" or `jnp.bfloat16`.

    Raises:
      ValueError: if it is none.
    """
    try:
        dtype = np.dtype(value)
    except (TypeError, ValueError):
        dtype = None
    if dtype is not None and dtype.name in ("float64", *DTYPES):
        return dtype
    near = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.get(str(value))
    advice = f"use {near!r}" if near else "leave it out for the default"
    if str(value) in QUANTIZATIONS:
        advice = f"quantize with siglip_jax.load(..., quantization={str(value)!r})"
    raise ValueError(f"{name} must be one of {', '.join(DTYPES)}, got {shown(value)}; {advice}")


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
