"""Assembles what a stage of a run computes: its objective, optimizer, schedule and step, and the first state."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from siglip_jax.configs.configuration import Siglip2Config, SiglipConfig
from siglip_jax.data.transform import Transform, normalize_pixels
from siglip_jax.models.cost import step_flops
from siglip_jax.training.costs import further_flops
from siglip_jax.training.curation import Curator
from siglip_jax.training.joint import JointPairs
from siglip_jax.training.naflex import kinds_of
from siglip_jax.training.objective import Labels, Objective, Pairs
from siglip_jax.training.optimizer import Treatment, make_optimizer
from siglip_jax.training.prepare import Model, Trainable
from siglip_jax.training.recipe import Recipe
from siglip_jax.training.step import Step, TrainState, init_state
from siglip_jax.training.timetable import timetable_of


def make_objective(recipe: Recipe, model: Model, transform: Transform, mesh: Mesh | None) -> Objective:
    """Returns the objective that a recipe minimises."""
    normalization = transform.mean, transform.std, transform.rescale_factor
    return objective_of(recipe, model.module, normalization, mesh, model.processor.tokenizer.eos_token_id)


def objective_of(
    recipe: Recipe,
    module: Trainable,
    normalization: tuple[Sequence[float], Sequence[float], float],
    mesh: Mesh | None,
    end_token: int = 1,
) -> Objective:
    """Returns the objective that a recipe minimises.

    Args:
      recipe: recipe of the run.
      module: module to train.
      normalization: mean, standard deviation and factor of the pixels, as `normalize_pixels` takes them.
      mesh: mesh over which the batch is sharded; None: one device.
      end_token: id of the token that ends a text.
    """
    mean, std, factor = normalization
    normalize = functools.partial(normalize_pixels, mean=mean, std=std, rescale_factor=factor)
    fields: dict[str, Any] = {
        "module": module,
        "prepare": lambda key, pixels: normalize(pixels),
        "lora": recipe.lora,
    }
    if recipe.task == "labels":
        return Labels(**fields)
    fields |= {"contrast": recipe.loss, "equal_texts_match": recipe.equal_texts_match, "mesh": mesh}
    if not (recipe.uses("captioning") or recipe.uses("self_distillation")):
        return Pairs(**fields)
    more = {"captioning": recipe.captioning, "self_distillation": recipe.self_distillation, "end_token": end_token}
    return JointPairs(**fields, **more)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps of a stage of a run.

    Attributes:
      table: treatment of each parameter by path, as from `treatments`.
      steps: steps of the whole run.
      schedule: function from steps done to the factor of rate and decay.
      step: step of the stage, which `make_step` compiles.
    """

    table: Mapping[str, Treatment]
    steps: int
    schedule: Callable[[Any], Any]
    step: Step


def make_plan(
    recipe: Recipe,
    table: Mapping[str, Treatment],
    objective: Objective,
    examples: int,
    mesh: Mesh | None,
    curator: Curator | None = None,
    when: tuple[int, Callable[[Any], Any]] | None = None,
) -> Plan:
    """Returns the plan of a run, or of a stage of it.

    Args:
      recipe: recipe of the run, or of a stage of it.
      table: treatment of each parameter by path, as from `treatments`.
      objective: objective to minimise.
      examples: examples of an epoch.
      mesh: mesh over which the batch is sharded; None: one device.
      curator: chooses the rows of each batch that are trained on; None: all are.
      when: steps of the whole run, and the schedule of the stage; None: those of the recipe's last stage.

    Raises:
      ValueError: if warm-up and cool-down are longer than the run.
    """
    if when is None:
        flexible = isinstance(getattr(objective.module, "config", None), Siglip2Config) and not recipe.late.naflex
        found = timetable_of(recipe, examples, flexible)
        when = found.steps, found.stages[-1].schedule
    steps, schedule = when
    optimizer = make_optimizer(recipe.optimizer, table, schedule)
    step = Step(objective, optimizer, recipe.micro_batches, recipe.optimizer.average, recipe.seed, mesh, curator)
    return Plan(table, steps, schedule, step)


def flops_of(
    recipe: Recipe,
    config: SiglipConfig,
    table: Mapping[str, Treatment],
    kinds: Sequence[tuple[int | None, int]] | None = None,
) -> int:
    """Returns the operations of a step of a recipe, as `step_flops` and `further_flops` count them.

    Steps of several sequence lengths are averaged.

    Args:
      recipe: recipe of the run.
      config: configuration of the model.
      table: treatment of each parameter by path, as from `treatments`.
      kinds: (length, examples) of each kind of step, as from `kinds_of`; None: all of the recipe's.
    """
    moving = {path.partition("/")[0] for path, entry in table.items() if not entry.frozen}
    kinds = kinds or kinds_of(recipe.naflex, recipe.batch_size, config)
    each = [
        step_flops(
            config,
            0 if recipe.locked_images else examples,
            examples if recipe.task == "pairs" else 0,
            image_trained=bool(moving & {"vision_model", "lora"}),
            text_trained=bool(moving & {"text_model", "lora"}),
            patches=length,
        )
        for length, examples in kinds
    ]
    return sum(further_flops(recipe, config, kinds).values()) + round(sum(each) / len(each))


def make_state(plan: Plan, params: Mapping[str, Any]) -> TrainState:
    """Returns the state before the first step, which takes ownership of `params`."""
    step = plan.step
    return init_state(params, lambda path: plan.table[path].frozen, step.optimizer, step.average is not None, step.mesh)
