"""What a run leaves behind: the trained parameters as a model, and what must be the same for it to be resumed."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from siglip_jax.training.joint import without_groups
from siglip_jax.training.lora import merge as merge_lora
from siglip_jax.training.objective import Objective
from siglip_jax.training.prepare import Model
from siglip_jax.training.recipe import Recipe


def identity_of(recipe: Recipe, name_or_path: str, **fingerprints: str) -> dict[str, Any]:
    """Returns what must be the same for a run to be resumed, for JSON: the recipe without its mesh, and the model.

    Args:
      recipe: recipe of the run.
      name_or_path: name of the model as it was given.
      **fingerprints: hashes of what the recipe does not state, as `processor`.
    """
    fields = {name: value for name, value in dataclasses.asdict(recipe).items() if name != "mesh"}
    return json.loads(json.dumps(fields | {"model": name_or_path, "fingerprints": fingerprints}))


def whole(recipe: Recipe, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters that the module takes, with low-rank additions folded in and without further groups."""
    params = without_groups(params)
    additions = params.pop("lora", None)
    return params if additions is None else merge_lora(recipe.lora, params, additions)


def gathered(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns parameters that a process can use without the others; all processes must call it."""
    return params if jax.process_count() == 1 else multihost_utils.process_allgather(dict(params), tiled=True)


def local_objective(objective: Objective) -> Objective:
    """Returns the objective for use without the other processes: on one device if there are others."""
    if jax.process_count() == 1:
        return objective
    return dataclasses.replace(objective, module=objective.module.clone(mesh=None))


def save_model(directory: Path, recipe: Recipe, model: Model, params: Mapping[str, Any]) -> None:
    """Writes a Hugging Face directory: float32 weights with low-rank additions folded in, and the processor.

    All processes must call it; the first one writes.

    Args:
      directory: directory to write; made if need be.
      recipe: recipe of the run.
      model: module and processor.
      params: trained parameters; low-rank additions under "lora".
    """
    params = gathered(params)
    if jax.process_index():
        return
    directory.mkdir(parents=True, exist_ok=True)
    model.module.save_pretrained(directory, whole(recipe, params))
    model.processor.save_pretrained(directory)
