"""Ordered rules over the paths of parameters: the first pattern that matches a path decides.

Sharding, learning rates, weight decay, freezing, fresh parameters, LoRA and quantization are all given as such rules.
"""

import functools
import re
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")

__all__ = ["Rule", "Rules", "match_rule", "match_rules"]

Rule = tuple[str, T]
"""(regular expression that must match the whole path, value)."""

Rules = tuple[Rule[T], ...]
"""Rules in order; the first match wins."""


def match_rule(rules: Iterable[Rule[T]], path: str, name: str) -> T:
    """Returns the value that ordered rules assign to one parameter.

    Args:
      rules: pairs (pattern, value); a pattern is a regular expression that must match the whole path.
      path: path of the parameter, as in "text_model/head/kernel".
      name: name of the rules, for errors.

    Returns:
      The value of the first rule whose pattern matches.

    Raises:
      ValueError: if a pattern is not a regular expression, or no rule matches the path.

    Example:
      >>> match_rule(((".*/kernel", 1.0), (".*", 0.0)), "text_model/head/kernel", "decays")
      1.0
    """
    for pattern, value in rules:
        if _compiled(pattern, name).fullmatch(path):
            return value
    raise ValueError(f"{name} must match every parameter, got no rule for {path}; end the rules with ('.*', ...)")


def match_rules(rules: Iterable[Rule[T]], paths: Iterable[str], name: str) -> dict[str, T]:
    """Returns the value that ordered rules assign to each parameter; every rule must match one.

    Args:
      rules: pairs (pattern, value); a pattern is a regular expression that must match the whole path.
      paths: paths of all parameters.
      name: name of the rules, for errors.

    Returns:
      The value of the first matching rule, by path, in the order of `paths`.

    Raises:
      ValueError: if a pattern is not a regular expression or matches no path, or a path has no rule.

    Example:
      >>> match_rules(((".*/kernel", 1.0), (".*", 0.0)), ["head/kernel", "head/bias"], "decays")
      {'head/kernel': 1.0, 'head/bias': 0.0}
    """
    rules, paths = list(rules), list(paths)
    for pattern, _ in rules:
        if not any(_compiled(pattern, name).fullmatch(path) for path in paths):
            some = ", ".join(paths[:3])
            raise ValueError(f"{name}: {pattern!r} matches no parameter; use a pattern for paths such as {some}, …")
    return {path: match_rule(rules, path, name) for path in paths}


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str, name: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{name} must be regular expressions, got {pattern!r} ({error}); correct the pattern"
        ) from None
