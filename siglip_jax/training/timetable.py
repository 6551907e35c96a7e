"""When a run does what: its stages, each with a recipe of its own, and the rate at every step.

A stage begins where losses start or images change. The examples of a stage go on where those of the one before ended.
"""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from siglip_jax.training.durations import steps_of
from siglip_jax.training.naflex import examples_per_step
from siglip_jax.training.optimizer import make_schedule
from siglip_jax.training.recipe import Recipe
from siglip_jax.training.terms import Growth, Late


class Stage(NamedTuple):
    """A stage of a run.

    Attributes:
      recipe: recipe of the stage: the losses that have started, and the images as they are in it.
      start: steps of the run before the stage.
      end: steps of the run up to its end.
      before: examples that the stages before took.
      schedule: function from steps of the run to the factor of the stage's rate and decay.
    """

    recipe: Recipe
    start: int
    end: int
    before: int
    schedule: Callable[[Any], Float[Array, ""]]


class Timetable(NamedTuple):
    """The stages of a run, in order.

    Attributes:
      stages: the stages.
      examples: examples that the whole run takes.
    """

    stages: tuple[Stage, ...]
    examples: int

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.stages[-1].end

    def factor(self, step: int) -> float:
        """Returns the rate of a step as a multiple of the first stage's peak.

        Args:
          step: steps of the run before it.
        """
        stage = next((stage for stage in self.stages if step < stage.end), self.stages[-1])
        return stage.recipe.optimizer.rate / self.stages[0].recipe.optimizer.rate * float(stage.schedule(step))


def timetable_of(recipe: Recipe, examples: int, flexible: bool = False) -> Timetable:
    """Returns the stages of a run.

    Args:
      recipe: recipe of the run.
      examples: examples of an epoch.
      flexible: whether the run begins with a model of variable resolution.

    Raises:
      ValueError: if a stage starts after the end of the run, or warm-up and cool-down are longer than it.
    """
    units: dict[str, Any] = {"batch_size": _per_step(recipe, flexible), "examples": examples}
    steps = steps_of(recipe.duration, **units)
    schedule: Callable[[Any], Any] = make_schedule(recipe.schedule, steps=steps, **units)
    starts = {}
    for name in ("self_distillation", "late"):
        options = getattr(recipe, name)
        if options.used:
            starts[name] = steps_of(options.start, **units, total=steps)
            if starts[name] >= steps:
                raise ValueError(f"{name}.start must be before the end of the run, {steps} steps, got {options.start}")
    if recipe.late.stretch != 1:
        schedule, steps = _stretched(schedule, starts["late"], steps, recipe.late.stretch)
    begins = sorted({0, *starts.values()})
    planned = []
    for start, end in zip(begins, [*begins[1:], steps], strict=True):
        changed: dict[str, Any] = {}
        naflex = recipe.late.naflex and start >= starts["late"]
        if start < starts.get("self_distillation", 0) or naflex:
            changed["self_distillation"] = dataclasses.replace(recipe.self_distillation, weight=0.0, masked_weight=0.0)
        if start < starts.get("late", 0):
            changed["late"] = Late()
        if recipe.growth.used:
            changed["growth"] = Growth()
        planned.append((dataclasses.replace(recipe, **changed), start, end, schedule))
    for grown in recipe.growth.recipes(recipe):
        start = planned[-1][2]
        units["batch_size"] = grown.batch_size
        steps = steps_of(grown.duration, **units)
        planned.append(
            (grown, start, start + steps, _shifted(make_schedule(grown.schedule, steps=steps, **units), start))
        )
    stages, before = [], Fraction(0)
    for stage, start, end, factor in planned:
        stages.append(Stage(stage, start, end, round(before), factor))
        before += (end - start) * _per_step(stage, flexible or stage.late.naflex)
    return Timetable(tuple(stages), round(before))


def _per_step(recipe: Recipe, flexible: bool) -> int | Fraction:
    """Returns the mean number of examples of a step."""
    return examples_per_step(recipe.naflex.steps(recipe.batch_size) if flexible else ((None, recipe.batch_size),))


def _shifted(schedule: Callable[[Any], Any], start: int) -> Callable[[Any], Any]:
    """Returns a schedule that begins at a step."""
    return lambda step: schedule(step - start)


def _stretched(
    schedule: Callable[[Any], Any], start: int, steps: int, factor: float
) -> tuple[Callable[[Any], Any], int]:
    """Returns a schedule whose part from a step on takes `factor` times as long, and its steps."""

    def stretched(step: Any) -> Any:
        after = jnp.maximum(jnp.asarray(step).astype(jnp.float32) - start, 0.0)
        return schedule(jnp.where(after > 0, start + after / factor, step))

    return stretched, start + max(round((steps - start) * factor), 1)
