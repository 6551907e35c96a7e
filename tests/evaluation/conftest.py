"""The bundled model, loaded and compiled once for all these tests."""

import pytest

import siglip_jax
from siglip_jax.inference import Siglip


@pytest.fixture(scope="session")
def siglip() -> Siglip:
    return siglip_jax.load()
