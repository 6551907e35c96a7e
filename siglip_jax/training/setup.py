"""Sets up a run: the recipe with its changed fields, the opened data, the model, the objective and the plan."""

import dataclasses
import functools
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from siglip_jax._callbacks import OnProgress
from siglip_jax._checks import check_choice, refuse_unknown
from siglip_jax.configs.configuration import Siglip2Config
from siglip_jax.data.example import Source
from siglip_jax.data.open import open_source
from siglip_jax.data.pipeline import Pipeline
from siglip_jax.data.transform import Transform
from siglip_jax.evaluation.prompts import brief
from siglip_jax.params import flatten, unflatten
from siglip_jax.training.assembly import Plan, make_objective, make_plan
from siglip_jax.training.curating import make_curator
from siglip_jax.training.flexible import check_flexible, check_lengths
from siglip_jax.training.joint import placed_groups
from siglip_jax.training.memory import host_memory
from siglip_jax.training.naflex import kinds_of
from siglip_jax.training.objective import Objective
from siglip_jax.training.precomputed import PrecomputedTransform, precompute_image_embeds, tower_fingerprint
from siglip_jax.training.prepare import Model, make_table, make_transform, mesh_of, prepare_model
from siglip_jax.training.processors import processor_fingerprint
from siglip_jax.training.recipe import Recipe
from siglip_jax.training.recipes import RECIPES
from siglip_jax.training.saving import gathered, local_objective
from siglip_jax.training.timetable import Timetable, timetable_of

Path_ = str | os.PathLike[str]
Data = Path_ | Source | Sequence[Path_ | tuple[Path_ | Source, float | None]] | Mapping[Path_, float]
Sources = list[tuple[Source, float]]


def recipe_with(recipe: str | Recipe, fields: Mapping[str, Any]) -> Recipe:
    """Returns a recipe with some fields changed.

    Args:
      recipe: name of a recipe in `siglip_jax.training.RECIPES`, or a `Recipe`.
      fields: new values by field; nested ones as {"optimizer": {"rate": 1e-5}} or {"optimizer.rate": 1e-5}.

    Returns:
      The changed recipe.

    Raises:
      ValueError: if the name or a field is unknown, or a value is impossible.

    Example:
      >>> recipe_with("finetune", {"batch_size": 64, "optimizer.rate": 1e-6}).optimizer.rate
      1e-06
    """
    if isinstance(recipe, str):
        check_choice("recipe", recipe, RECIPES)
        recipe = RECIPES[recipe]
    return _replaced(recipe, fields, "recipe")


def _replaced(options: Any, fields: Mapping[str, Any], name: str) -> Any:
    """Returns a dataclass with some fields changed, also in nested dataclasses."""
    nested: dict[str, dict[str, Any]] = {}
    changed: dict[str, Any] = {}
    refuse_unknown((key.partition(".")[0] for key in fields), (f.name for f in dataclasses.fields(options)), name)
    for key, value in fields.items():
        first, dot, rest = key.partition(".")
        if dot:
            nested.setdefault(first, {})[rest] = value
        elif isinstance(value, Mapping):
            nested.setdefault(first, {}).update(value)
        else:
            changed[first] = _tuples(value)
    for first, inner in nested.items():
        changed[first] = _replaced(changed.get(first, getattr(options, first)), inner, f"{name}.{first}")
    return dataclasses.replace(options, **changed)


def _tuples(value: Any) -> Any:
    """Returns a value with tuples in place of lists, which JSON has instead."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything that a run is made of.

    Attributes:
      model: module with its initial parameters.
      objective: objective to minimise.
      sources: opened data with their weights.
      pipeline: batches of the sources.
      plan: steps of the run.
      mesh: mesh of the run; None: one device.
      times: stages of the run.
      stage: number of the stage that all this is for, from 0.
    """

    model: Model
    objective: Objective
    sources: Sources
    pipeline: Pipeline
    plan: Plan
    mesh: Mesh | None
    times: Timetable
    stage: int


def set_up(sources: Sources, name_or_path: Path_, recipe: Recipe, workers: int) -> Setup:
    """Opens a checkpoint and makes what the first stage of a run needs, and writes nothing.

    Args:
      sources: opened data with their weights, as from `open_sources`.
      name_or_path: checkpoint of the run.
      recipe: recipe of the run.
      workers: processes that read and decode; 0: threads of this process.
    """
    classes = [source.classes for source, _ in sources if source.classes]
    if recipe.task == "labels":
        _check_classes([source for source, _ in sources])
    if recipe.captioning.boxes and not any(getattr(source, "has_boxes", True) for source, _ in sources):
        raise ValueError(
            "captioning.boxes must be 0 for data without boxes, got"
            f" {recipe.captioning.boxes:g}; give data with boxes and box_captions"
        )
    examples, mesh = sum(len(source) for source, _ in sources), mesh_of(recipe)
    times = timetable_of(recipe, examples)
    first = times.stages[0].recipe
    model = prepare_model(first, name_or_path, labels=classes[0] if recipe.task == "labels" else (), mesh=mesh)
    if isinstance(model.module.config, Siglip2Config):
        check_flexible(recipe, mesh)
        times = timetable_of(recipe, examples, flexible=True)
    if len(times.stages) > 1:
        whole_model(recipe, model)  # refuses now what a later stage would
    for stage in times.stages[1:]:
        mesh_of(stage.recipe)
        if stage.recipe.late.naflex:
            check_lengths(stage.recipe, mesh)
    transform = make_transform(first, model.processor)
    setup = assemble(sources, first, model, transform, mesh, workers, times, 0)
    kinds = kinds_of(recipe.naflex, recipe.batch_size, model.module.config)
    _check_batch(recipe, transform, kinds, examples, setup.plan.steps)
    return setup


def whole_model(recipe: Recipe, model: Model) -> Model:
    """Returns a model with the shapes of all parameters of a run, in its order, then those of losses that start later.

    Args:
      recipe: recipe of the run.
      model: module with its parameters and the treatment of them.

    Raises:
      ValueError: if the rules of the recipe do not fit the parameters.
    """
    make = functools.partial(placed_groups, recipe, model.module, mesh=None)
    shapes = flatten(jax.eval_shape(make, dict(model.params)))  # sorted by name
    shapes = {path: shapes[path] for path in flatten(model.params) | shapes}
    return dataclasses.replace(model, params=unflatten(shapes), table=make_table(recipe, shapes))


def assemble(
    sources: Sources,
    recipe: Recipe,
    model: Model,
    transform: Transform,
    mesh: Mesh | None,
    workers: int,
    times: Timetable,
    stage: int,
) -> Setup:
    """Returns the setup of a stage of a run, for a model that is prepared.

    Args:
      sources: opened data with their weights, as from `open_sources`.
      recipe: recipe of the stage.
      model: module with its processor and the treatment of its parameters.
      transform: transform of the examples, as from `make_transform`.
      mesh: mesh of the run; None: one device.
      workers: processes that read and decode; 0: threads of this process.
      times: stages of the run.
      stage: number of the stage, from 0.
    """
    objective = make_objective(recipe, model, transform, mesh)
    kinds = [kind for kind in kinds_of(recipe.naflex, recipe.batch_size, model.module.config) if kind[0] is not None]
    pipeline = make_pipeline(sources, transform, recipe, workers, kinds, times.stages[stage].before)
    curator = make_curator(recipe, model.teacher, objective)
    when = times.steps, times.stages[stage].schedule
    plan = make_plan(recipe, model.table, objective, pipeline.examples, mesh, curator, when)
    return Setup(model, objective, sources, pipeline, plan, mesh, times, stage)


def _check_batch(recipe: Recipe, transform: Transform, kinds: Sequence[Any], examples: int, steps: int) -> None:
    """Refuses a batch whose images fill the memory, and warns of one that is larger than the data."""
    images = 3 * max(n * transform.at(length).pixels_per_image for length, n in kinds) // jax.process_count()
    memory = host_memory()
    if memory is not None and images > memory:
        raise ValueError(
            f"batch_size must be one whose images fit in memory, got {recipe.batch_size} with {images / 2**30:.1f} GiB"
            f" of images, and {memory / 2**30:.1f} GiB of memory; lower it"
        )
    if recipe.batch_size > examples:
        warnings.warn(
            f"batch_size is {recipe.batch_size}, more than the {examples} examples of the data: each step repeats"
            f" examples, and {recipe.duration} are {steps} steps; lower batch_size",
            stacklevel=4,
        )


def make_pipeline(
    sources: Sources, transform: Transform, recipe: Recipe, workers: int, lengths: Sequence[Any] = (), before: int = 0
) -> Pipeline:
    """Returns the batches of this process, after a number of examples."""
    return Pipeline(
        sources,
        transform,
        batch_size=recipe.examples_per_step,
        lengths=lengths,
        before=before,
        seed=recipe.seed,
        workers=workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _check_classes(sources: Sequence[Source]) -> None:
    """Raises a `ValueError` unless all sources have labels of the same classes."""
    for source in sources:
        name = getattr(source, "path", type(source).__name__)
        if not source.classes:
            raise ValueError(
                f"{name}: images must have labels to train a classifier, got {_given(source)}; give data with labels,"
                " name their column with label_key (--label-key), or train on captions with the recipe finetune"
            )
        if source.classes != sources[0].classes:
            raise ValueError(
                f"{name}: all data sets must have the same classes, got {brief(source.classes)} after"
                f" {brief(sources[0].classes)}; rename the classes"
            )


def _given(source: Source) -> str:
    """Returns what the first example of a source has in place of a label, for a message."""
    try:
        return "captions" if source[0].texts else "none"
    except (OSError, ValueError):
        return "none"


def open_sources(data: Data, keys: Mapping[str, Any]) -> Sources:
    """Returns opened sources with their weights, by default their lengths.

    Args:
      data: data of a run, as `train` takes it.
      keys: arguments of `open_source` by name.
    """
    if isinstance(data, Source):
        return [(data, float(len(data)))]
    items: Iterable[Any] = [data] if isinstance(data, str | os.PathLike) else data
    if isinstance(data, Mapping):
        items = data.items()
    found: Sources = []
    for item in items:
        path, weight = item if isinstance(item, tuple) else (item, None)
        source = path if isinstance(path, Source) else open_source(path, **keys)
        found.append((source, float(len(source) if weight is None else weight)))
    return found


def with_image_embeds(
    setup: Setup, recipe: Recipe, directory: Path, image_tower: str, workers: int, on_progress: OnProgress | None
) -> Setup:
    """Returns the setup with embeddings in place of images, stored in a folder of the run for each source.

    Args:
      setup: setup of the run.
      recipe: recipe with `locked_images`.
      directory: directory of the run.
      image_tower: fingerprint of weights and processor, as from `image_tower_of`.
      workers: processes that read and decode; 0: threads of this process.
      on_progress: called with (images embedded, images in all) of each source; None: nothing is called.
    """
    model = setup.model
    transform = make_transform(recipe, model.processor)
    objective, params = local_objective(setup.objective), jax.device_put(gathered(model.params))
    found: Sources = []
    for number, (source, weight) in enumerate(setup.sources):
        folder = directory / "image_embeds" / str(number)
        embedded = precompute_image_embeds(
            objective, params, source, transform, folder, made_by=image_tower, on_progress=on_progress
        )
        found.append((embedded, weight))
    pipeline = make_pipeline(found, PrecomputedTransform(model.processor), recipe, workers)
    return dataclasses.replace(setup, sources=found, pipeline=pipeline)


def image_tower_of(setup: Setup) -> str:
    """Returns the fingerprint of the weights and of the processor that embed the images; all processes must call it."""
    processor = processor_fingerprint(setup.model.processor)
    return tower_fingerprint(setup.objective, gathered(setup.model.params), processor)
