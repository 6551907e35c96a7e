"""A tiny checkpoint, and the engine around it, shared by the tests of this folder."""

from pathlib import Path

import pytest

from siglip_jax.inference import Siglip, load
from tests.tiny_checkpoint import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def shared_siglip(checkpoint: Path) -> Siglip:
    return load(checkpoint)


@pytest.fixture
def siglip(checkpoint: Path) -> Siglip:
    """A fresh engine: nothing compiled, nothing remembered."""
    return load(checkpoint)
