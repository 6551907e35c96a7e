"""What only another project's configuration holds: found on reading, merged into what is written."""

from typing import Any


def difference(found: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries of a nested dict that another one has not, without empty dicts."""
    left = {}
    for key, value in found.items():
        if isinstance(value, dict) and isinstance(made.get(key), dict):
            value = difference(value, made[key])
            if value:
                left[key] = value
        elif key not in made or value != made[key]:
            left[key] = value
    return left


def merged(made: Any, kept: Any) -> Any:
    """Returns nested dicts with the entries of both; those of `kept` take precedence."""
    if not isinstance(made, dict):
        return kept
    if not isinstance(kept, dict):
        return made
    return {**made, **{key: merged(made.get(key), value) for key, value in kept.items()}}
