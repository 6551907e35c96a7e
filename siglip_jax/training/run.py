"""Trains a model from data, a checkpoint and a recipe: the job of `siglip-jax train`, as a function."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from siglip_jax._callbacks import OnProgress
from siglip_jax._checks import check_choice, refuse_unknown
from siglip_jax._files import output_path, write_atomically
from siglip_jax.data.example import Source
from siglip_jax.data.open import open_source
from siglip_jax.data.pipeline import Pipeline
from siglip_jax.data.transform import Transform
from siglip_jax.inference.bench import peak_memory
from siglip_jax.inference.engine import Siglip
from siglip_jax.models import SiglipModel
from siglip_jax.models.cost import Placement, estimate, placements, step_flops
from siglip_jax.parallel.mesh import AXES
from siglip_jax.params import flatten
from siglip_jax.processing import SiglipProcessor
from siglip_jax.training.evaluators import labels_evaluation, pairs_evaluation
from siglip_jax.training.loop import Evaluate, LoopOptions, OnMetrics, run_loop
from siglip_jax.training.objective import Objective
from siglip_jax.training.precomputed import PrecomputedTransform, precompute_image_embeds
from siglip_jax.training.prepare import (
    Model,
    Plan,
    Trainable,
    gathered,
    identity_of,
    local_objective,
    make_objective,
    make_plan,
    make_state,
    make_transform,
    mesh_of,
    prepare_model,
    save_model,
    whole,
)
from siglip_jax.training.recipe import Recipe
from siglip_jax.training.recipes import RECIPES
from siglip_jax.training.step import TrainState, make_step

Path_ = str | os.PathLike[str]
Data = Path_ | Source | Sequence[Path_ | tuple[Path_, float | None]] | Mapping[Path_, float]
Sources = list[tuple[Source, float]]

SCHEDULE_POINTS = 60  # values of the schedule that a dry run returns


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run, finished or stopped.

    Attributes:
      model: module of the trained model.
      params: its parameters; the moving average if the recipe keeps one, with LoRA weights folded in.
      processor: processor for images of the model's size.
      metrics: every line of `log.jsonl` that this call wrote: dicts with "step" and the metrics of the last steps, or
        of an evaluation.
      directory: where the run is kept: checkpoints, `log.jsonl`, `recipe.json`, and, once it is finished, `model`.
      steps: steps done.
      total_steps: steps of the whole run.
      stopped: whether a signal (Ctrl-C, SIGTERM) stopped the run before its end; the same call resumes it.

    No example: `train` returns it, and its example shows one.
    """

    model: Trainable
    params: dict[str, Any]
    processor: SiglipProcessor
    metrics: list[dict[str, Any]]
    directory: Path
    steps: int
    total_steps: int
    stopped: bool


def train(
    data: Data,
    model: Path_,
    out: Path_,
    recipe: str | Recipe = "finetune",
    *,
    on_metrics: OnMetrics | None = None,
    on_progress: OnProgress | None = None,
    on_precompute: OnProgress | None = None,
    evaluate: Path_ | Source | None = None,
    best: str | None = None,
    save_every: int = 1000,
    keep: int = 2,
    log_every: int = 20,
    tensorboard: bool = False,
    workers: int = 0,
    image_key: str | None = None,
    text_key: str | None = None,
    label_key: str | None = None,
    **fields: Any,
) -> Run:
    """Trains a model, or resumes a run that was interrupted: the same call with the same `out`.

    Ctrl-C (in a notebook: interrupting the cell) and SIGTERM save a checkpoint and return. In a job of several
    processes call `siglip_jax.join_processes` first, and this function on every process with the same arguments.

    Args:
      data: data to train on: a path as `siglip_jax.data.open_source` takes it, a list of paths or of pairs
        (path, weight), a mapping from paths to weights, or an opened source. A weight is a share of the examples that
        are drawn; without one it is the length of the source.
      model: checkpoint with the sizes, the processor and the initial weights: a Hub name, directory or file.
      out: directory of the run, made if need be; `~` is the home directory. A URL (`gs://...`) is refused.
      recipe: name of a recipe in `siglip_jax.training.RECIPES`, or a `Recipe`.
      on_metrics: called with each line of the log, a dict with "step" and metrics; None: nothing is called.
      on_progress: called with (steps done, steps in all), as often as `on_metrics`; None: nothing is called.
      on_precompute: called with (images embedded, images in all) before the first step, if the recipe has
        `locked_images`; None: nothing is called.
      evaluate: data to evaluate every checkpoint on: by zero-shot accuracy if it has classes, else by retrieval; a
        classifier by accuracy. None: nothing is evaluated.
      best: name of a metric of `evaluate`; the checkpoint where it is highest is kept too. None: only the latest.
      save_every: steps between checkpoints.
      keep: number of latest checkpoints to keep.
      log_every: steps between lines of the log.
      tensorboard: also write TensorBoard files.
      workers: processes that read and decode; 0: threads of this process.
      image_key: column, key or ending of the images; None: one of the usual names.
      text_key: column, key or ending of the captions; None: one of the usual names.
      label_key: column, key or ending of the labels; None: one of the usual names.
      **fields: fields of the recipe to change; nested ones as `optimizer=dict(rate=1e-5)` or
        `**{"optimizer.rate": 1e-5}`.

    Returns:
      The trained model with its parameters, processor and metrics.

    Raises:
      FileNotFoundError: if data or checkpoint do not exist.
      ValueError: if data, checkpoint and recipe do not fit together, `out` holds another run, or the loss stays not
        finite.

    Example:
      >>> import pathlib, shutil, tempfile, siglip_jax
      >>> from siglip_jax.training import train
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     data, out = pathlib.Path(folder, "data"), pathlib.Path(folder, "run")
      ...     for name in ("horse", "lemon"):
      ...         (data / name).mkdir(parents=True)
      ...         _ = shutil.copy(siglip_jax.assets.EXAMPLES / f"{name}.png", data / name)
      ...     model = siglip_jax.assets.BUNDLED_MODEL
      ...     run = train(data, model, out, "linear-probe", batch_size=8, duration="2 steps")
      >>> run.model.config.id2label
      {0: 'horse', 1: 'lemon'}
      >>> run.steps, run.stopped, "loss" in run.metrics[0]
      (2, False, True)
    """
    directory = output_path(out)
    recipe = recipe_with(recipe, fields)
    keys = {"image_key": image_key, "text_key": text_key, "label_key": label_key}
    setup = _set_up(data, model, recipe, keys, workers, directory, on_precompute)
    directory.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        write_atomically(directory / "recipe.json", json.dumps(dataclasses.asdict(recipe), indent=2).encode() + b"\n")
    state = make_state(setup.plan, setup.model.params)
    metrics: list[dict[str, Any]] = []

    def keep_metrics(line: dict[str, Any]) -> None:
        metrics.append(line)
        if on_metrics is not None:
            on_metrics(line)

    outcome = run_loop(
        make_step(setup.plan.step, state),
        state,
        setup.pipeline,
        setup.plan.steps,
        LoopOptions(directory, save_every, keep, best, log_every, tensorboard),
        identity=identity_of(recipe, os.fspath(model)),
        more_metrics=_speed_metrics(recipe, setup.model, setup.plan),
        evaluate=None if evaluate is None else _evaluation(evaluate, keys, recipe, setup),
        mesh=setup.mesh,
        on_metrics=keep_metrics,
        on_progress=on_progress,
    )
    params = outcome.state.average_params
    if not outcome.stopped:
        save_model(directory / "model", recipe, setup.model, params)
    module, processor = setup.model.module, setup.model.processor
    return Run(
        module,
        whole(recipe, params),
        processor,
        metrics,
        directory,
        outcome.steps,
        setup.plan.steps,
        outcome.stopped,
    )


def dry_run(
    data: Data,
    model: Path_,
    recipe: str | Recipe = "finetune",
    *,
    image_key: str | None = None,
    text_key: str | None = None,
    label_key: str | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Returns the plan of a run: what `train` would do with each parameter, without a step.

    Args:
      data: data to train on: a path as `siglip_jax.data.open_source` takes it, a list of paths or of pairs
        (path, weight), a mapping from paths to weights, or an opened source. A weight is a share of the examples that
        are drawn; without one it is the length of the source.
      model: checkpoint with the sizes, the processor and the initial weights: a Hub name, directory or file.
      recipe: name of a recipe in `siglip_jax.training.RECIPES`, or a `Recipe`.
      image_key: column, key or ending of the images; None: one of the usual names.
      text_key: column, key or ending of the captions; None: one of the usual names.
      label_key: column, key or ending of the labels; None: one of the usual names.
      **fields: fields of the recipe to change; nested ones as `optimizer=dict(rate=1e-5)` or
        `**{"optimizer.rate": 1e-5}`.

    Returns:
      A dict that JSON can hold: `steps`, `batch_size`, `examples` of an epoch, `epochs`, `trained_parameters`,
      `all_parameters`, `mesh`, `memory_per_device` in bytes (None where no estimate applies), `peak_rate`, `schedule`
      (factors of the rate, evenly spaced over the run), and `parameters`, a row for each: `parameter` (its path),
      `shape`, `rate`, `decay`, `frozen` and `sharding`.

    Raises:
      FileNotFoundError: if data or checkpoint do not exist.
      ValueError: if data, checkpoint and recipe do not fit together.

    Example:
      >>> import pathlib, tempfile, siglip_jax
      >>> from siglip_jax.training import dry_run
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     table = pathlib.Path(folder, "pairs.csv")
      ...     _ = table.write_text("image,caption\\nhorse.png,a horse\\nlemon.png,a lemon\\n")
      ...     frozen = {"optimizer.rates": (("vision_model/.*", 0.0), (".*", 1.0))}
      ...     plan = dry_run(table, siglip_jax.assets.BUNDLED_MODEL, batch_size=8, duration="5 steps", **frozen)
      >>> plan["steps"], plan["peak_rate"], {row["frozen"] for row in plan["parameters"]} == {False, True}
      (5, 1e-05, True)
    """
    recipe = recipe_with(recipe, fields)
    keys = {"image_key": image_key, "text_key": text_key, "label_key": label_key}
    setup = _set_up(data, model, recipe, keys, 0, None, None)
    plan, examples = setup.plan, setup.pipeline.examples
    sizes = {"data": recipe.mesh.data, "fsdp": recipe.mesh.fsdp, "tensor": recipe.mesh.tensor}
    if setup.mesh is not None:
        sizes = {axis: setup.mesh.shape[axis] for axis in AXES}
    sizes = {axis: max(size, 1) for axis, size in sizes.items()}
    shapes = {path: tuple(x.shape) for path, x in flatten(setup.model.params).items()}
    lora = {path: shape for path, shape in shapes.items() if path.startswith("lora/")}
    placed = placements({path: shape for path, shape in shapes.items() if path not in lora}, sizes)
    specs = {row.path: row.spec for row in placed} | dict.fromkeys(lora, "whole")
    rows = [_treatment_row(recipe, setup.model, path, shapes[path], spec) for path, spec in specs.items()]
    trained = sum(int(np.prod(row["shape"])) for row in rows if not row["frozen"])
    points = np.linspace(0, plan.steps, SCHEDULE_POINTS).round().astype(int)
    return {
        "steps": plan.steps,
        "batch_size": recipe.batch_size,
        "examples": examples,
        "epochs": round(plan.steps * recipe.batch_size / examples, 3),
        "trained_parameters": trained,
        "all_parameters": sum(int(np.prod(shape)) for shape in shapes.values()),
        "mesh": sizes,
        "memory_per_device": _memory(recipe, setup.model, placed, sizes),
        "peak_rate": recipe.optimizer.rate,
        "schedule": [float(plan.schedule(step)) for step in points],
        "parameters": rows,
    }


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
            changed[first] = tuple(map(tuple, value)) if first in ("rates", "decays") else value
    for first, inner in nested.items():
        changed[first] = _replaced(changed.get(first, getattr(options, first)), inner, f"{name}.{first}")
    return dataclasses.replace(options, **changed)


@dataclasses.dataclass(frozen=True)
class _Setup:
    """Everything that a run is made of."""

    model: Model
    objective: Objective
    pipeline: Pipeline
    plan: Plan
    mesh: Mesh | None


def _set_up(
    data: Data,
    name_or_path: Path_,
    recipe: Recipe,
    keys: Mapping[str, Any],
    workers: int,
    directory: Path | None,
    on_precompute: OnProgress | None,
) -> _Setup:
    """Opens data and checkpoint; embeds locked images only if there is a directory for the embeddings."""
    sources = _opened(data, keys)
    classes = [source.classes for source, _ in sources if source.classes]
    if recipe.task == "labels" and (len(classes) < len(sources) or len(set(classes)) > 1):
        raise ValueError(
            f"all of {len(sources)} data sets must have the same classes, got {len(classes)} with classes, which are of"
            f" {len(set(classes))} kinds; give data with labels"
        )
    mesh = mesh_of(recipe)
    model = prepare_model(recipe, name_or_path, labels=classes[0] if recipe.task == "labels" else (), mesh=mesh)
    transform = make_transform(recipe, model.processor)
    objective = make_objective(recipe, model, transform, mesh)
    if recipe.locked_images and directory is not None:
        sources = _precomputed(sources, recipe, model, objective, directory, on_precompute)
        transform = PrecomputedTransform(model.processor)
    pipeline = Pipeline(
        sources,
        transform,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        workers=workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    plan = make_plan(recipe, model.table, objective, pipeline.examples, mesh)
    return _Setup(model, objective, pipeline, plan, mesh)


def _opened(data: Data, keys: Mapping[str, Any]) -> Sources:
    """Returns opened sources with their weights, by default their lengths."""
    if isinstance(data, Source):
        return [(data, float(len(data)))]
    items: Iterable[Any] = [data] if isinstance(data, str | os.PathLike) else data
    if isinstance(data, Mapping):
        items = data.items()
    found: Sources = []
    for item in items:
        path, weight = item if isinstance(item, tuple) else (item, None)
        source = open_source(path, **keys)
        found.append((source, float(len(source) if weight is None else weight)))
    return found


def _precomputed(
    sources: Sources,
    recipe: Recipe,
    model: Model,
    objective: Objective,
    directory: Path,
    on_progress: OnProgress | None,
) -> Sources:
    """Returns sources with embeddings in place of images, stored in a folder of the run for each."""
    transform: Transform = make_transform(recipe, model.processor)
    objective, params = local_objective(objective), jax.device_put(gathered(model.params))
    found: Sources = []
    for number, (source, weight) in enumerate(sources):
        folder = directory / "image_embeds" / str(number)
        embedded = precompute_image_embeds(objective, params, source, transform, folder, on_progress=on_progress)
        found.append((embedded, weight))
    return found


def _evaluation(data: Path_ | Source, keys: Mapping[str, Any], recipe: Recipe, setup: _Setup) -> Evaluate:
    """Returns the function from a state to the metrics of its evaluation."""
    objective, model = local_objective(setup.objective), setup.model
    module, config = objective.module, model.module.config
    source = data if isinstance(data, Source) else open_source(data, **keys)
    if isinstance(module, SiglipModel):
        siglip = Siglip(module, whole(recipe, model.params), model.processor, config)
        evaluate = pairs_evaluation(siglip, source)
    else:
        transform = make_transform(dataclasses.replace(recipe, augment="none"), model.processor)
        evaluate = labels_evaluation(objective, list((config.id2label or {}).values()), source, transform)

    def metrics(state: TrainState) -> Mapping[str, float]:
        return evaluate(jax.device_put(whole(recipe, gathered(state.average_params))))

    return metrics


def _speed_metrics(recipe: Recipe, model: Model, plan: Plan) -> Callable[[int, float], dict[str, float]]:
    """Returns the function from (step, steps per second) to the metrics of speed, learning rate and memory."""
    moving = {path.partition("/")[0] for path, entry in model.table.items() if not entry.frozen}
    flops = step_flops(
        model.module.config,
        0 if recipe.locked_images else recipe.batch_size,
        recipe.batch_size if recipe.task == "pairs" else 0,
        image_trained=bool(moving & {"vision_model", "lora"}),
        text_trained=bool(moving & {"text_model", "lora"}),
    )

    def metrics(step: int, steps_per_second: float) -> dict[str, float]:
        line = {
            "examples_per_second": steps_per_second * recipe.batch_size,
            "teraflops_per_second": steps_per_second * flops / 1e12,
            "rate": recipe.optimizer.rate * float(plan.schedule(step)),
        }
        used = peak_memory()
        if "device" in used:
            return line | {"device_memory": used["device"]}
        return line | {"host_memory": used["host"]}

    return metrics


def _treatment_row(recipe: Recipe, model: Model, path: str, shape: tuple[int, ...], spec: str) -> dict[str, Any]:
    """Returns the row of a parameter in the plan of a dry run."""
    entry = model.table[path]
    return {
        "parameter": path,
        "shape": list(shape),
        "rate": recipe.optimizer.rate * entry.rate,
        "decay": recipe.optimizer.weight_decay * entry.decay,
        "frozen": entry.frozen,
        "sharding": spec,
    }


def _memory(recipe: Recipe, model: Model, placed: Sequence[Placement], sizes: dict[str, int]) -> int | None:
    """Returns bytes on each device, as `siglip-jax info --mesh` estimates them; None where no estimate applies."""
    if recipe.task != "pairs" or recipe.locked_images or recipe.remat not in (None, "full"):
        return None
    batch = recipe.batch_size // recipe.micro_batches
    found = estimate(model.module.config, placed, sizes, batch, training=True, remat=recipe.remat, dtype=recipe.dtype)
    frozen = sum(row.bytes for row in placed if model.table[row.path].frozen)
    return found.total - 3 * frozen  # frozen parameters have no gradient and no moments
