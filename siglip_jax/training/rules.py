"""Ordered rules over the paths of parameters: the first pattern that fits decides, and every parameter must be covered.

The same idea as in `siglip_jax.parallel.rules`, for numbers: rates, decays, freezing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

Rules = Sequence[tuple[str, float]]

LOGITS = frozenset({"logit_scale", "logit_bias"})


def values_by_rule(rules: Rules, paths: Iterable[str], what: str) -> dict[str, float]:
    """Returns the number that the first fitting rule gives each path.

    Args:
      rules: (regular expression over the whole path, number), as in ((".*/kernel", 1.0), (".*", 0.0)).
      what: the rules' name, for errors.

    Raises:
      ValueError: if a path is covered by no rule, or a pattern is no regular expression or fits no path.
    """
    compiled = []
    for pattern, value in rules:
        try:
            compiled.append((re.compile(pattern), value))
        except re.error as error:
            raise ValueError(f"{what}: expected regular expressions, found {pattern!r} ({error})") from None
    paths = list(paths)
    for pattern, _ in compiled:
        if not any(pattern.fullmatch(path) for path in paths):
            some = ", ".join(paths[:3])
            raise ValueError(f"{what}: {pattern.pattern!r} fits no parameter; they are called {some}, …")
    found = {}
    for path in paths:
        value = next((value for pattern, value in compiled if pattern.fullmatch(path)), None)
        if value is None:
            raise ValueError(f"{what}: no rule covers {path}; end the rules with ('.*', ...)")
        found[path] = value
    return found


def path_of(keys: Sequence[Any]) -> str:
    """Returns "text_model/head/kernel" for the keys that lead to a leaf; what is not a dictionary's key is left out."""
    return "/".join(str(key.key) for key in keys if isinstance(key, jax.tree_util.DictKey))


def tree_by_path(values: Mapping[str, Any], like: Any) -> Any:
    """Returns a tree of the structure of `like` with the value of each leaf's path."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: values[path_of(keys)], like)


def group_of(path: str) -> str:
    """Returns the part of the model that a parameter belongs to: a tower, the classifier, or the two logit scalars."""
    top = path.partition("/")[0]
    return "logits" if top in LOGITS else top
