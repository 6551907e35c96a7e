"""How a stage of a run is entered.

The state of the run goes from one stage to the next by path: parameters, moments and counts go on, those of new groups
start, and those that change their shape are resized or start anew.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.surgery import with_patch_size, with_resolution
from siglip_jax.configs.configuration import Siglip2VisionConfig
from siglip_jax.parallel.sharding import shard_params
from siglip_jax.params import flatten, unflatten
from siglip_jax.training.assembly import Plan, make_state
from siglip_jax.training.flexible import late_config, processor_of
from siglip_jax.training.joint import TEACHER, placed_groups
from siglip_jax.training.prepare import POSITIONS, fixed_positions, make_module, make_table, make_transform
from siglip_jax.training.recipe import Recipe
from siglip_jax.training.saving import gathered
from siglip_jax.training.setup import Setup, assemble
from siglip_jax.training.step import TrainState

_TOWER = ("embeddings/position_embedding/embedding", "embeddings/patch_embedding/kernel")  # what a change resizes


def enter(
    setup: Setup, number: int, state: TrainState, workers: int
) -> tuple[Setup, TrainState, Callable[[TrainState], TrainState]]:
    """Enters a stage.

    Args:
      setup: setup of the stage before.
      number: number of the stage to enter, from 1 for the second.
      state: last state of the stage before, or any with its structure.
      workers: processes that read and decode; 0: threads of this process.

    Returns:
      The setup of the stage, its first state, and the function from the last state of the stage before to it.
    """
    recipe, old, mesh = setup.times.stages[number].recipe, setup.model, setup.mesh
    before = old.module.config
    config = config_of_stage(before, recipe, setup.times.stages[number - 1].recipe)
    module = make_module(recipe, config, mesh)
    processor = processor_of(old.processor, config)
    paths = flatten(jax.eval_shape(lambda params: placed_groups(recipe, module, params, None), state.params))
    model = dataclasses.replace(old, module=module, processor=processor, table=make_table(recipe, paths))
    transform = make_transform(recipe, processor)
    entered = assemble(setup.sources, recipe, model, transform, mesh, workers, setup.times, number)

    def enter_state(state: TrainState) -> TrainState:
        params = state.params
        if config != before:
            params = _placed_anew(params, before, config, recipe, mesh)
        return _carried(entered.plan, placed_groups(recipe, module, params, mesh), state)

    state = enter_state(state)
    return dataclasses.replace(entered, model=dataclasses.replace(model, params=state.params)), state, enter_state


def _carried(plan: Plan, params: Mapping[str, Any], state: TrainState) -> TrainState:
    """Returns the first state of a stage: every array of the state before that has a place of its shape in it."""
    before = {jax.tree_util.keystr(keys): x for keys, x in jax.tree_util.tree_leaves_with_path(state)}

    def carried(keys: tuple[Any, ...], new: Any) -> Any:
        old = before.get(jax.tree_util.keystr(keys))
        return new if old is None or (old.shape, old.dtype) != (new.shape, new.dtype) else old

    return jax.tree_util.tree_map_with_path(carried, make_state(plan, params))


def _placed_anew(
    params: Mapping[str, Any], before: Any, config: Any, recipe: Recipe, mesh: Mesh | None
) -> dict[str, Any]:
    """Returns parameters with other tables and patch embeddings, of the tower and of a teacher, on their devices."""
    flat = flatten(params)
    for prefix in ("", f"{TEACHER}/"):
        names = [f"{prefix}vision_model/{name}" for name in _TOWER]
        if names[0] not in flat:
            continue
        arrays = flatten(gathered(unflatten({name.removeprefix(prefix): flat[name] for name in names})))
        changed = _changed({path: np.asarray(x) for path, x in arrays.items()}, before, config, recipe)
        placed = unflatten({prefix + path: x for path, x in changed.items()})
        flat |= flatten(jax.device_put(placed) if mesh is None else shard_params(placed, mesh))
    return unflatten(flat)


def config_of_stage(config: Any, recipe: Recipe, before: Recipe) -> Any:
    """Returns the configuration of a model in a stage.

    Args:
      config: configuration of the whole model in the stage before.
      recipe: recipe of the stage.
      before: recipe of the stage before.
    """
    if recipe.late.used and not before.late.used:
        return late_config(config, recipe.late)
    if recipe.resolution not in (None, before.resolution):
        return config.replace(vision_config=config.vision_config.replace(image_size=recipe.resolution))
    return config


def _changed(flat: Mapping[str, np.ndarray], before: Any, config: Any, recipe: Recipe) -> dict[str, np.ndarray]:
    """Returns the arrays of an image tower whose images change."""
    old, new = before.vision_config, config.vision_config
    if isinstance(new, Siglip2VisionConfig):  # a patch is flat, in the same order of its values
        return {path: x.reshape(-1, x.shape[-1]) if x.ndim == 4 else x for path, x in flat.items()}
    checkpoint = Checkpoint(before, unflatten(flat), "huggingface", "SiglipModel")
    if new.patch_size != old.patch_size:
        checkpoint = with_patch_size(checkpoint, new.patch_size).checkpoint
    made: Any = checkpoint.config
    if new.image_size != made.vision_config.image_size:
        checkpoint = with_resolution(checkpoint, new.image_size).checkpoint
    fixed = {POSITIONS: fixed_positions(config)} if recipe.positions == "sincos" else {}
    return flatten(checkpoint.params) | fixed
