"""Settings of every test and doctest."""

import builtins
import ctypes
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

# Imported, not called: the first makes settings; the second is what pyproject.toml tells jaxtyping to check types with.
import tests.support.strict
import tests.support.type_checker  # noqa: F401
from tests.support.quick import compiling_quickly, hold_only

_STATM = Path("/proc/self/statm")
_GROWTH = 3 << 28  # bytes by which a process may grow before compiled programs are forgotten
_forgotten_at = 0

collect_ignore = ["tests/support"]  # without tests; some of it imports torch, which not every environment has

# Packages whose examples load and compile the bundled model.
SLOW_EXAMPLES = {"evaluation", "inference", "plots", "search", "training"}

LONGEST = {"test_killed.py", "test_notebooks.py"}

# Packages whose numbers are held against float64 and the reference, or whose compiled programs are looked at.
OPTIMIZED = {"losses", "models", "parallel", "planning", "quantization"}


def folders(node: pytest.Item | pytest.Collector) -> set[str]:
    """Returns the names of the folders of a test within the project."""
    return set(node.path.relative_to(node.config.rootpath).parts)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the examples of some packages as slow; the files that take longest come first, or one worker ends alone."""
    for item in items:
        if isinstance(item, pytest.DoctestItem) and SLOW_EXAMPLES & folders(item):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def no_last_value() -> Iterator[None]:
    """Forgets the value that a doctest showed last: tyro hashes every builtin, and not every value has a hash."""
    yield
    vars(builtins).pop("_", None)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiles without most optimizations, but for tests of them: the others compile for longer than they compute."""
    if OPTIMIZED & folders(request.node):
        hold_only(quick=False)
        yield
        return
    with compiling_quickly(tmp_path_factory.getbasetemp() / "compiled"):
        yield


@pytest.fixture
def optimized(quick_compilation: None) -> Iterator[None]:
    """A test compiles as users do."""
    was = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    hold_only(quick=False)
    yield
    jax.config.update("jax_disable_most_optimizations", was)
    hold_only(quick=was)


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """Forgets compiled programs after a test where they have made the process grow: jax keeps all of them."""
    global _forgotten_at
    yield
    if _resident() > _forgotten_at + _GROWTH:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        _forgotten_at = _resident()


def _resident() -> int:
    """Returns the bytes of this process in memory; 0 where the system does not say."""
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if _STATM.is_file() else 0
