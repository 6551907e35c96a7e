"""Trees of other programs that orbax has saved: which towers they hold, and the table of their parameters.

- Names of big_vision: pi0 of openpi (`params/PaliGemma/img/…`, each leaf below `value` where NNX saved it) and Gemma 3
  (`vision_encoder/siglip_encoder/…`, also with whole paths as the names of one flat dict).
- Names of this package: parameters that a user has saved, alone or as `params` of a train state.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from siglip_jax._files import naming, read_json
from siglip_jax.checkpoints.formats import big_vision_names
from siglip_jax.checkpoints.formats.towers import HEADS
from siglip_jax.checkpoints.keymap import CLASSIFIER, TEXT, VISION, architecture_of, key_table
from siglip_jax.checkpoints.table import SAME, Row, StoredTensor, layer_of
from siglip_jax.configs.configuration import CONFIGS, Config, config_from_dict
from siglip_jax.configs.towers import tower_config
from siglip_jax.params import LAYER, Shape

_VALUE = "/value"  # `nnx.State` puts every array below it
_OURS = re.compile(rf"((?:.*/)?)(?:{TEXT}|{VISION})/(?:embeddings|encoder)/")


@dataclasses.dataclass(frozen=True)
class Leaf(StoredTensor):
    """An array of a tree.

    Attributes:
      names: names from the root of the tree to the array; a name may hold "/".
    """

    names: tuple[str, ...] = ()


class Found(NamedTuple):
    """What a tree holds, as `Contents` describes it."""

    config: Config
    architecture: str
    tensors: dict[str, StoredTensor]
    layout: dict[str, Any]


def find(path: Path, leaves: Mapping[str, StoredTensor]) -> Found:
    """Finds the towers in a tree.

    Args:
      path: directory of the checkpoint, which may hold a `config.json` for parameters of this package.
      leaves: arrays of the tree by path.

    Raises:
      ValueError: if there are none, or no configuration follows from their shapes.
    """
    ending = _VALUE if all(key.endswith(_VALUE) for key in leaves) else ""
    tensors = {key.removesuffix(ending): leaf for key, leaf in leaves.items()}
    roots = sorted({m[1] for key in tensors if (m := _OURS.match(key))})
    with naming(path):
        if not roots:
            found = big_vision_names.find(tensors)
            return Found(found.config, architecture_of(found.config), found.tensors, found.layout)
        root = next((root for root in roots if root in ("params/", "")), roots[0])
        tensors = {key: t for key, t in tensors.items() if key.startswith((*_parts(root), root + "logit_"))}
        shapes = {key.removeprefix(root): t.shape for key, t in tensors.items()}
        stacked = [name for name in (TEXT, VISION) if any(key.startswith(f"{name}/encoder/layers/") for key in shapes)]
        classifies = any(key.startswith(CLASSIFIER) for key in shapes)
        file = path / "config.json"
        config = config_from_dict(read_json(file, "")) if file.is_file() else _config(shapes)
    layout = {"prefix": root, "names": "siglip_jax", "stacked": stacked}
    return Found(config, architecture_of(config, classifies), tensors, layout)


def _parts(root: str) -> tuple[str, ...]:
    return tuple(f"{root}{name}/" for name in (TEXT, VISION, CLASSIFIER))


def table(config: Config, architecture: str, layout: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of all parameters of a tree.

    Args:
      config: configuration of the model class.
      architecture: name of the model class.
      layout: what `find` found.
    """
    if layout.get("names") != "siglip_jax":
        return big_vision_names.table(config, architecture, layout)
    return [_row(row, config, layout) for row in key_table(config, architecture)]


def _row(row: Row, config: Config, layout: Mapping[str, Any]) -> Row:
    name, prefix = row.path.partition("/")[0], layout["prefix"]
    m = LAYER.fullmatch(row.path)
    if m is None or name not in layout["stacked"]:
        return Row(row.path, prefix + row.path, row.shape)
    tower = tower_config(config, name)
    return Row(row.path, f"{prefix}{m[1]}/layers/{m[3]}", row.shape, layer_of(SAME), int(m[2]), tower.num_hidden_layers)


def _config(shapes: Mapping[str, Shape]) -> Config:
    """Returns the configuration that follows from the shapes of this package's parameters.

    Raises:
      ValueError: if no released variant has the width.
    """
    towers: dict[str, dict[str, Any]] = {}
    try:
        for name in (VISION, TEXT):
            if any(key.startswith(f"{name}/") for key in shapes):
                towers[name] = _encoder(shapes, name) | (_vision(shapes) if name == VISION else _text(shapes))
    except KeyError as error:
        raise ValueError(f"the names must be those of siglip_jax, got none of {error}") from error
    family = "siglip2" if "num_patches" in towers.get(VISION, ()) else "siglip"
    if len(towers) == 2:
        return CONFIGS[family].from_dict({"vision_config": towers[VISION], "text_config": towers[TEXT]})
    name, tower = next(iter(towers.items()))
    return CONFIGS[f"{family}_{name}"].from_dict(tower)


def _encoder(shapes: Mapping[str, Shape], name: str) -> dict[str, int]:
    at = f"{name}/encoder/layers"
    stacked = shapes.get(f"{at}/mlp/fc1/kernel")
    width, mlp = shapes[f"{at}_0/mlp/fc1/kernel"] if stacked is None else stacked[1:]
    if width not in HEADS:
        raise ValueError(
            f"the width of a tower must be among {sorted(HEADS)}, from which its number of heads follows, got {width};"
            " put the config.json of the model beside the tree"
        )
    layers = {m[2] for key in shapes if key.startswith(f"{at}_") and (m := LAYER.fullmatch(key))}
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": len(layers) if stacked is None else stacked[0],
        "num_attention_heads": HEADS[width],
    }


def _text(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    at = f"{TEXT}/embeddings"
    return {
        "vocab_size": shapes[f"{at}/token_embedding/embedding"][0],
        "max_position_embeddings": shapes[f"{at}/position_embedding/embedding"][0],
        "projection_size": shapes[f"{TEXT}/head/kernel"][1],
    }


def _vision(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    at = f"{VISION}/embeddings"
    kernel = shapes[f"{at}/patch_embedding/kernel"]
    positions = shapes[f"{at}/position_embedding/embedding"][0]
    head = {"vision_use_head": f"{VISION}/head/probe" in shapes}
    if len(kernel) == 2:
        return head | {"num_patches": positions, "patch_size": math.isqrt(kernel[0] // 3)}
    return head | big_vision_names.image_sizes(kernel, positions)
