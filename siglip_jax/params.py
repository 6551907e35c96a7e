"""Trees of parameters: nested dicts, "/"-separated paths, and stacking of layers for `nn.scan`.

An example of a path is `text_model/encoder/layers_0/self_attn/q_proj/kernel`. With `scan_layers=True` the layers of a
tower are one subtree `layers`, whose arrays have a leading axis of the number of layers.
"""

import dataclasses
import hashlib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

__all__ = [
    "LAYER",
    "LOGITS",
    "LayerStack",
    "LazyArray",
    "Shape",
    "checksum",
    "flatten",
    "group_of",
    "layer_slice",
    "path_of",
    "stack_layers",
    "tree_by_path",
    "unflatten",
    "unstack_layers",
]

Shape = tuple[int, ...]
"""Shape of an array."""

LOGITS = frozenset({"logit_scale", "logit_bias"})
"""Paths of the two scalars of the loss."""

LAYER = re.compile(r"(.*(?:en|de)coder)/layers_(\d+)/(.*)")
"""Path of a parameter of a layer: encoder or decoder, index of the layer, path within the layer."""

_STACK = re.compile(r"(.*(?:en|de)coder)/layers/(.*)")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of a nested dict by path.

    Args:
      tree: nested dict with string keys; anything that is not a mapping is a leaf.
      prefix: text to put before every path.

    Returns:
      {"a/b/c": leaf}, in the order of the tree.

    Example:
      >>> flatten({"text_model": {"head": {"bias": 0.0}}, "logit_bias": -10.0})
      {'text_model/head/bias': 0.0, 'logit_bias': -10.0}
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        at = f"{prefix}{name}"
        flat |= flatten(value, f"{at}/") if isinstance(value, Mapping) else {at: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dict of leaves by path: the inverse of `flatten`.

    Args:
      flat: leaves by "/"-separated path.

    Returns:
      A nested dict with the same leaves.

    Example:
      >>> unflatten({"text_model/head/bias": 0.0, "logit_bias": -10.0})
      {'text_model': {'head': {'bias': 0.0}}, 'logit_bias': -10.0}
    """
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def path_of(keys: Sequence[Any]) -> str:
    """Returns the path of a leaf from the keys that `jax.tree_util.tree_map_with_path` passes.

    Args:
      keys: tree keys from the root to the leaf; keys that are not dictionary keys are left out.

    Returns:
      The dictionary keys joined by "/", as in "text_model/head/kernel".
    """
    return "/".join(str(key.key) for key in keys if isinstance(key, jax.tree_util.DictKey))


def tree_by_path(values: Mapping[str, Any], like: Any) -> Any:
    """Returns a tree with the structure of another one, filled by path.

    Args:
      values: the value of each path.
      like: tree whose structure is used.

    Returns:
      A tree like `like` whose leaf at a path is `values[path]`.
    """
    return jax.tree_util.tree_map_with_path(lambda keys, _: values[path_of(keys)], like)


def checksum(tree: Any) -> str:
    """Returns the SHA-256 of the paths, dtypes, shapes and values of a tree of arrays, in hexadecimal.

    Args:
      tree: any tree of arrays that this process can read, on the host or on devices.

    Example:
      >>> checksum({"bias": np.zeros(2)}) == checksum({"bias": np.zeros(2, np.float32)})
      False
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        values = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).view(np.uint8))
    return digest.hexdigest()


def group_of(path: str) -> str:
    """Returns the part of the model that a parameter belongs to.

    Args:
      path: path of a parameter.

    Returns:
      "text_model", "vision_model", "classifier" or "lora", and "logits" for `logit_scale` and `logit_bias`.
    """
    top = path.partition("/")[0]
    return "logits" if top in LOGITS else top


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array of known shape and dtype that is computed each time numpy asks for it.

    Attributes:
      shape: shape of the array.
      dtype: dtype of the array.
      make: function that computes the array.
    """

    shape: Shape
    dtype: np.dtype
    make: Callable[[], np.ndarray] = dataclasses.field(repr=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.make(), dtype)


def layer_slice(stack: Any, index: int) -> LazyArray:
    """Returns one layer of a stacked parameter without copying it.

    Args:
      stack: array with a leading axis of the number of layers.
      index: index of the layer.

    Returns:
      A `LazyArray` of the layer.
    """
    return LazyArray(stack.shape[1:], np.dtype(stack.dtype), lambda: np.asarray(stack[index]))


class LayerStack:
    """The arrays of one parameter in all layers, stacked only when they are copied to a device.

    Attributes:
      layers: the arrays, one per layer, of equal shape.
      shape: shape of the stack: (number of layers, *shape of a layer).
      dtype: dtype of the arrays.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        """Keeps the arrays of the layers; nothing is copied.

        Args:
          layers: one array per layer, of equal shape and dtype.
        """
        self.layers = list(layers)
        self.shape: Shape = (len(self.layers), *self.layers[0].shape)
        self.dtype = self.layers[0].dtype


def stack_layers(params: Mapping[str, Any], stack: Callable[..., Any] = np.stack) -> dict[str, Any]:
    """Stacks the layers of each encoder and decoder on a leading axis, as `scan_layers=True` needs them.

    Args:
      params: tree with subtrees `layers_0`, `layers_1`, … in each encoder and decoder.
      stack: function from a list of the arrays of one parameter, one per layer, to the stacked parameter.

    Returns:
      The tree with one subtree `layers` in each encoder in the place of `layers_0`, `layers_1`, ….

    Example:
      >>> stacked = stack_layers({"encoder": {"layers_0": {"bias": np.zeros(2)}, "layers_1": {"bias": np.ones(2)}}})
      >>> stacked["encoder"]["layers"]["bias"].shape
      (2, 2)
    """
    flat: dict[str, Any] = {}
    layers: dict[str, dict[int, Any]] = {}
    for path, value in flatten(params).items():
        if m := LAYER.fullmatch(path):
            layers.setdefault(f"{m[1]}/layers/{m[3]}", {})[int(m[2])] = value
        else:
            flat[path] = value
    return unflatten(flat | {path: stack([parts[i] for i in range(len(parts))]) for path, parts in layers.items()})


def unstack_layers(params: Mapping[str, Any], take: Callable[[Any, int], Any] = operator.getitem) -> dict[str, Any]:
    """Splits stacked layers: the inverse of `stack_layers`.

    Args:
      params: tree with stacked layers; a tree whose layers are not stacked is returned unchanged.
      take: function from a stacked parameter and the index of a layer to that layer.

    Returns:
      The tree with subtrees `layers_0`, `layers_1`, … in each encoder.
    """
    flat: dict[str, Any] = {}
    for path, value in flatten(params).items():
        if m := _STACK.fullmatch(path):
            flat |= {f"{m[1]}/layers_{i}/{m[2]}": take(value, i) for i in range(value.shape[0])}
        else:
            flat[path] = value
    return unflatten(flat)
