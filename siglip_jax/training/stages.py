"""The stages of a run: which losses it has and which images it sees from which step on, and how a stage is entered.

A stage has a recipe of its own. The state of the run goes from one to the next by path: parameters, moments and counts
go on, those of new groups start, and those that change their shape are resized or start anew.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.surgery import with_patch_size, with_resolution
from siglip_jax.parallel.sharding import shard_params
from siglip_jax.params import flatten, unflatten
from siglip_jax.training.durations import steps_of
from siglip_jax.training.joint import TEACHER, placed_groups
from siglip_jax.training.prepare import (
    Plan,
    gathered,
    make_module,
    make_state,
    make_table,
    make_transform,
)
from siglip_jax.training.processors import processor_of_size
from siglip_jax.training.recipe import Recipe
from siglip_jax.training.setup import Setup, assemble
from siglip_jax.training.step import TrainState
from siglip_jax.training.terms import Late

_TOWER = ("embeddings/position_embedding/embedding", "embeddings/patch_embedding/kernel")  # what a change resizes


class Stage(NamedTuple):
    """A stage of a run.

    Attributes:
      recipe: recipe of the stage: the losses that have started, and `late` once the change is made.
      start: steps of the run before the stage.
      end: steps of the run up to its end.
    """

    recipe: Recipe
    start: int
    end: int


def stages_of(recipe: Recipe, examples: int) -> list[Stage]:
    """Returns the stages of a run, in order.

    Args:
      recipe: recipe of the run.
      examples: examples of an epoch.

    Raises:
      ValueError: if a stage starts after the end of the run.
    """
    units = {"batch_size": recipe.batch_size, "examples": examples}
    steps, starts = steps_of(recipe.duration, **units), {}
    for name in ("self_distillation", "late"):
        options = getattr(recipe, name)
        if options.used:
            start = steps_of(options.start, **units, total=steps)
            if start >= steps:
                raise ValueError(f"{name}.start must be before the end of the run, {steps} steps, got {options.start}")
            starts[name] = start
    begins = sorted({0, *starts.values()})
    found = []
    for start, end in zip(begins, [*begins[1:], steps], strict=True):
        changed: dict[str, Any] = {}
        if start < starts.get("self_distillation", 0):
            changed["self_distillation"] = dataclasses.replace(recipe.self_distillation, weight=0.0, masked_weight=0.0)
        if start < starts.get("late", 0):
            changed["late"] = Late()
        found.append(Stage(dataclasses.replace(recipe, **changed), start, end))
    return found


def enter(
    setup: Setup, before: Stage, stage: Stage, state: TrainState, workers: int
) -> tuple[Setup, TrainState, Callable[[TrainState], TrainState]]:
    """Enters a stage.

    Args:
      setup: setup of the stage before.
      before: the stage before.
      stage: the stage to enter.
      state: last state of the stage before, or any with its structure.
      workers: processes that read and decode; 0: threads of this process.

    Returns:
      The setup of the stage, its first state, and the function from the last state of the stage before to it.
    """
    recipe, old, mesh = stage.recipe, setup.model, setup.mesh
    config, changes = old.module.config, recipe.late.used and not before.recipe.late.used
    if changes:
        config = late_config(config, recipe.late)
    module = make_module(recipe, config, mesh)
    processor = processor_of_size(old.processor, config.vision_config.image_size)
    paths = flatten(jax.eval_shape(lambda params: placed_groups(recipe, module, params, None), state.params))
    model = dataclasses.replace(old, module=module, processor=processor, table=make_table(recipe, paths))
    entered = assemble(setup.sources, recipe, model, make_transform(recipe, processor), mesh, workers)

    def enter_state(state: TrainState) -> TrainState:
        params = state.params
        if changes:
            params = _placed_anew(params, old.module.config, recipe.late, mesh)
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


def _placed_anew(params: Mapping[str, Any], config: Any, late: Late, mesh: Mesh | None) -> dict[str, Any]:
    """Returns parameters with resized tables and patch embeddings, of the tower and of a teacher, on their devices."""
    flat = flatten(params)
    for prefix in ("", f"{TEACHER}/"):
        names = [f"{prefix}vision_model/{name}" for name in _TOWER]
        if names[0] not in flat:
            continue
        arrays = flatten(gathered(unflatten({name.removeprefix(prefix): flat[name] for name in names})))
        resized = _resized({path: np.asarray(x) for path, x in arrays.items()}, config, late)
        placed = unflatten({prefix + path: x for path, x in resized.items()})
        flat |= flatten(jax.device_put(placed) if mesh is None else shard_params(placed, mesh))
    return unflatten(flat)


def late_config(config: Any, late: Late) -> Any:
    """Returns the configuration of a model after a late change.

    Args:
      config: configuration of the whole model.
      late: the change.
    """
    vision = config.vision_config
    if late.patch_size is not None:
        side = vision.image_size // vision.patch_size
        vision = vision.replace(patch_size=late.patch_size, image_size=side * late.patch_size)
    if late.resolution is not None:
        vision = vision.replace(image_size=late.resolution)
    return config.replace(vision_config=vision)


def _resized(flat: Mapping[str, np.ndarray], config: Any, late: Late) -> dict[str, np.ndarray]:
    """Returns the arrays of an image tower after a late change."""
    checkpoint = Checkpoint(config, unflatten(flat), "huggingface", "SiglipModel")
    if late.patch_size is not None:
        checkpoint = with_patch_size(checkpoint, late.patch_size).checkpoint
    if late.resolution is not None:
        checkpoint = with_resolution(checkpoint, late.resolution).checkpoint
    return flatten(checkpoint.params)
