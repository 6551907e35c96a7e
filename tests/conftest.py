"""A tiny checkpoint with the engine around it, and the marker of tests that compare with the reference."""

import functools
import re
from pathlib import Path

import pytest

from siglip_jax import Siglip, load
from tests.support.tiny_checkpoint import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint with its processor."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def shared_siglip(checkpoint: Path) -> Siglip:
    """The tiny checkpoint, loaded and compiled once for all tests."""
    return load(checkpoint)


@pytest.fixture
def siglip(checkpoint: Path) -> Siglip:
    """The tiny checkpoint, loaded anew: nothing compiled, nothing remembered."""
    return load(checkpoint)


@functools.cache
def compares_with_the_reference(file: Path) -> bool:
    """Returns whether a test file uses torch, transformers, or golden files made with them."""
    uses = r"^\s*(import|from) (torch|transformers)\b|\bGOLDEN\b|\bcases\."
    return re.search(uses, file.read_text(encoding="utf-8"), re.MULTILINE) is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of such files, so that `-m reference` runs them alone."""
    for item in items:
        if item.path.name.startswith("test_") and compares_with_the_reference(item.path):
            item.add_marker(pytest.mark.reference)
