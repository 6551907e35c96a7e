"""Trees of parameters: paths there and back, layers stacked and unstacked, lazy arrays."""

import jax
import numpy as np
import pytest

from siglip_jax.params import (
    LayerStack,
    LazyArray,
    flatten,
    group_of,
    layer_slice,
    path_of,
    stack_layers,
    tree_by_path,
    unflatten,
    unstack_layers,
)


@pytest.fixture
def tree():
    layers = {f"layers_{i}": {"fc1": {"kernel": np.full((2, 3), i)}} for i in range(12)}  # ten comes after nine
    return {"text_model": {"encoder": layers, "head": {"bias": np.arange(3)}}, "logit_scale": np.ones(1)}


def test_paths_there_and_back(tree):
    flat = flatten(tree)
    assert list(flat)[-2:] == ["text_model/head/bias", "logit_scale"]
    jax.tree.map(np.testing.assert_array_equal, unflatten(flat), tree)
    assert flatten({}) == unflatten({}) == {}
    assert list(flatten({"a": {"b": 1}}, "p/")) == ["p/a/b"]


def test_layers_are_stacked_in_the_order_of_their_numbers(tree):
    stacked = stack_layers(tree)
    kernel = stacked["text_model"]["encoder"]["layers"]["fc1"]["kernel"]
    np.testing.assert_array_equal(kernel[:, 0, 0], np.arange(12))
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked), tree)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(tree), tree)


def test_stacks_and_slices_are_made_when_they_are_asked_for(tree):
    stack = stack_layers(tree, LayerStack)["text_model"]["encoder"]["layers"]["fc1"]["kernel"]
    assert (stack.shape, stack.dtype) == ((12, 2, 3), tree["text_model"]["head"]["bias"].dtype)
    made: list[int] = []
    lazy = LazyArray((2,), np.dtype(np.int64), lambda: made.append(1) or np.arange(2))
    assert not made
    np.testing.assert_array_equal(np.asarray(lazy), [0, 1])
    assert np.asarray(lazy, np.float32).dtype == np.float32 and len(made) == 2
    one = layer_slice(np.arange(6).reshape(3, 2), 1)
    assert one.shape == (2,) and np.asarray(one).tolist() == [2, 3]


def test_values_by_path(tree):
    values = {path: len(path) for path in flatten(tree)}
    assert flatten(tree_by_path(values, tree)) == values
    keys, _ = jax.tree_util.tree_leaves_with_path([tree])[0]
    assert path_of(keys) == "logit_scale"  # the place in the list is left out


@pytest.mark.parametrize(
    ("path", "group"),
    [("logit_scale", "logits"), ("logit_bias", "logits"), ("text_model/head/bias", "text_model"), ("lora/a", "lora")],
)
def test_groups(path, group):
    assert group_of(path) == group
