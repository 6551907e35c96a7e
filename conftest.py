"""Settings of every test and doctest."""

import builtins
from collections.abc import Iterator

import pytest

import tests.support.strict  # noqa: F401


@pytest.fixture(autouse=True)
def no_last_value() -> Iterator[None]:
    """Forgets the value that a doctest showed last: tyro hashes every builtin, and not every value has a hash."""
    yield
    vars(builtins).pop("_", None)
