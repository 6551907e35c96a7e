"""Tests of training compile for longer than they compute."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def quick(quick_compilation):
    """Each of these tests compiles without most optimizations."""
