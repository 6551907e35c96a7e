"""Tests of training compile for longer than they compute."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def quick(quick_compilation):
    """Each of these tests compiles without most optimizations."""


@pytest.fixture
def optimized(quick):
    """A test compiles as users do."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
