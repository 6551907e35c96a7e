"""Settings of every test and doctest."""

import builtins
from collections.abc import Iterator

import pytest

import tests.support.strict  # noqa: F401

# Packages whose examples load and compile the bundled model.
SLOW_EXAMPLES = {"evaluation", "inference", "plots", "search", "training"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the examples of some packages as slow."""
    for item in items:
        if isinstance(item, pytest.DoctestItem) and SLOW_EXAMPLES & set(item.path.parts):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def no_last_value() -> Iterator[None]:
    """Forgets the value that a doctest showed last: tyro hashes every builtin, and not every value has a hash."""
    yield
    vars(builtins).pop("_", None)
