"""Strictness for every test, and a tiny checkpoint with the engine around it."""

import tests.support.strict  # noqa: F401  isort: skip  before anything that imports jax

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
