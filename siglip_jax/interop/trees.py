"""Conversion of parameters in memory between the trees of this package and those of big_vision.

Every parameter differs by its path and by a reshape only, so conversion copies nothing but stacked layers, and works on
numpy and jax arrays alike, also within `jax.jit`.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from siglip_jax.checkpoints.formats.big_vision_names import ROOTS, find, table
from siglip_jax.checkpoints.keymap import architecture_of
from siglip_jax.checkpoints.table import StoredTensor, check_names_and_shapes
from siglip_jax.configs.configuration import Config, SiglipConfig
from siglip_jax.configs.towers import tower_config
from siglip_jax.params import LAYER, Shape, flatten, stack_layers, unflatten, unstack_layers


class Pair(NamedTuple):
    """One parameter in both trees.

    Attributes:
      path: path in the tree of this package.
      shape: shape there.
      key: path in the tree of big_vision.
      key_shape: shape there.
    """

    path: str
    shape: Shape
    key: str
    key_shape: Shape


def pairs(config: Config, stacked: Iterable[str], layout: Mapping[str, Any]) -> list[Pair]:
    """Returns all parameters of a model class in both trees.

    Args:
      config: configuration of the whole model or of one tower.
      stacked: towers whose layers are stacked, in both trees.
      layout: prefix and roots of the tree of big_vision, as `find` returns them.
    """
    found, stacked = [], set(stacked)
    for row in table(config, architecture_of(config), {**layout, "stacked": ()}):
        name, m = row.path.partition("/")[0], LAYER.fullmatch(row.path)
        if m is None or name not in stacked:
            found.append(Pair(row.path, row.shape, row.key, row.tensor_shape))
        elif m[2] == "0":
            tower = tower_config(config, name)
            depth = tower.num_hidden_layers
            key = row.key.replace("/encoderblock_0/", "/encoderblock/")
            found.append(Pair(f"{m[1]}/layers/{m[3]}", (depth, *row.shape), key, (depth, *row.tensor_shape)))
    return found


def to_big_vision(params: Mapping[str, Any], config: Config, scan: bool = False) -> dict[str, Any]:
    """Returns parameters as the tree of big_vision's modules.

    Source: `two_towers`, `vit` and `text_transformer` of big_vision.

    Args:
      params: parameters of this package's module, layers stacked or not: numpy or jax arrays.
      config: configuration of the module: of the whole model, or of one tower.
      scan: whether the layers are stacked, as big_vision's modules with `scan=True` need them.

    Returns:
      {"img": …, "txt": …, "t": …, "b": …} for a whole model, and for one tower the tree of `vit` or `text_transformer`.

    Raises:
      ValueError: if the parameters are not those of the configuration, or include a classifier.

    Example:
      >>> import siglip_jax
      >>> model, params = siglip_jax.SiglipModel.from_pretrained(siglip_jax.assets.BUNDLED_MODEL)
      >>> tree = to_big_vision(params, model.config)
      >>> sorted(tree), tree["img"]["Transformer"]["encoderblock_0"]["LayerNorm_0"]["scale"].shape
      (['b', 'img', 't', 'txt'], (192,))
    """
    if set(params) == {"params"}:
        raise ValueError("params must be the tree of parameters, got {'params': …}; pass variables['params']")
    flat = flatten(_layers(params, scan))
    roots = ROOTS if isinstance(config, SiglipConfig) else dict.fromkeys(ROOTS, "")
    every = pairs(config, ROOTS if scan else (), {"prefix": "", "roots": roots})
    check_names_and_shapes("the tree of parameters", {p.path: p.shape for p in every}, _shapes(flat))
    return unflatten({p.key: flat[p.path].reshape(p.key_shape) for p in every})


def from_big_vision(tree: Mapping[str, Any], scan_layers: bool = False) -> tuple[dict[str, Any], Config]:
    """Returns the parameters and the configuration of a tree of big_vision's modules.

    Args:
      tree: nested dict of numpy or jax arrays: a whole model, one tower, or a larger model that holds them, as that
        of PaliGemma, {"img": …, "llm": …}; also below "params". Layers are stacked or not.
      scan_layers: whether the layers are stacked in the result, as modules with `scan_layers=True` need them.

    Returns:
      The parameters, and the configuration that follows from their shapes. What a larger model adds, as the projection
      `img/head` to the width of its language model, is left out.

    Raises:
      ValueError: if the tree holds no tower, or one with other names or shapes.

    Example:
      >>> import siglip_jax
      >>> model, params = siglip_jax.SiglipModel.from_pretrained(siglip_jax.assets.BUNDLED_MODEL)
      >>> tree = to_big_vision(params, model.config, scan=True)
      >>> params, config = from_big_vision({"params": {"img": tree["img"], "llm": {}}})
      >>> type(config).__name__, config.num_hidden_layers == model.config.vision_config.num_hidden_layers
      ('SiglipVisionConfig', True)
    """
    stored = {key: _stored(x) for key, x in flatten(tree).items()}
    found = find(stored)
    every = pairs(found.config, found.layout["stacked"], found.layout)
    shapes = {key: t.shape for key, t in found.tensors.items()}
    check_names_and_shapes("the tree", {p.key: p.key_shape for p in every}, shapes)
    params = {p.path: found.tensors[p.key].view().reshape(p.shape) for p in every}
    return _layers(unflatten(params), scan_layers), found.config


def _stored(x: Any) -> StoredTensor:
    return StoredTensor(Path("the tree"), tuple(x.shape), np.dtype(x.dtype), lambda: x)


def _shapes(flat: Mapping[str, Any]) -> dict[str, Shape]:
    return {path: tuple(np.shape(x)) for path, x in flat.items()}


def _layers(params: Mapping[str, Any], stacked: bool) -> dict[str, Any]:
    return stack_layers(params, _stack) if stacked else unstack_layers(params)


def _stack(layers: Sequence[Any]) -> Any:
    return jnp.stack(layers) if isinstance(layers[0], jax.Array) else np.stack(layers)
