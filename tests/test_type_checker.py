"""The checks of types that all tests run under."""

from typing import Any

import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

from tests.support.type_checker import checked


def test_a_nested_function_is_checked_at_each_definition():
    def outer(scale: float):
        @jaxtyped(typechecker=checked)
        def inner(x: Float[Array, " n"], y: Float[Array, " n"]) -> Float[Array, " n"]:
            return scale * (x + y)

        return inner

    three, four = jnp.ones(3), jnp.ones(4)
    for scale in (1.0, 2.0):
        inner = outer(scale)
        assert inner(three, three)[0] == 2 * scale
        with pytest.raises(TypeCheckError):
            inner(three, four)
        with pytest.raises(TypeCheckError):
            inner(three, three.astype(int))


def test_definitions_of_one_name_keep_their_own_types():
    def outer(kind: Any):
        @jaxtyped(typechecker=checked)
        def inner(x: kind) -> kind:
            return x

        return inner

    assert outer(int)(1) == 1 and outer(str)("a") == "a"
    for kind, wrong in ((int, "a"), (str, 1)):
        with pytest.raises(TypeCheckError):
            outer(kind)(wrong)
