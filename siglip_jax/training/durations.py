"""Durations of a run, as in "5000 steps", "10 epochs", "1e6 examples" or "3 percent"."""

import re
from fractions import Fraction

_UNITS = {"step": "steps", "epoch": "epochs", "example": "examples", "percent": "percent", "%": "percent"}


def parse_duration(text: str) -> tuple[Fraction, str]:
    """Returns the amount and the unit of a duration.

    Args:
      text: a number and a unit, as in "5000 steps", "10 epochs", "1e6 examples", "3 percent" or "3 %".

    Returns:
      The amount, and "steps", "epochs", "examples" or "percent".

    Raises:
      ValueError: if the text is not a duration.
    """
    m = re.fullmatch(r"\s*([0-9.]+(?:[eE]\+?[0-9]+)?)\s*(steps?|epochs?|examples?|percent|%)\s*", text)
    try:
        amount = Fraction(m[1]) if m else None
    except ValueError:
        amount = None
    if m is None or amount is None:
        raise ValueError(f"a duration must be like '5000 steps', '10 epochs' or '1e6 examples', got {text!r}")
    return amount, _UNITS[m[2].rstrip("s")]


def steps_of(text: str, *, batch_size: int | Fraction, examples: int, total: int | None = None) -> int:
    """Returns a duration in steps, rounded to the nearest, at least 1 unless the duration is 0.

    Args:
      text: a number and a unit, as in "5000 steps", "10 epochs", "1e6 examples" or "3 percent".
      batch_size: examples of a step.
      examples: examples of an epoch.
      total: steps of the run, which "percent" refers to; None: "percent" is not allowed.

    Raises:
      ValueError: if the text is not a duration, or is a percentage without a total.
    """
    amount, unit = parse_duration(text)
    if unit == "percent":
        if total is None:
            raise ValueError(f"the duration of a run must be in steps, epochs or examples, got {text!r}")
        steps = amount * total / 100
    elif unit == "steps":
        steps = amount
    else:
        steps = amount * (examples if unit == "epochs" else 1) / batch_size
    return max(round(steps), 1) if amount else 0
