"""Trains a model from data, a checkpoint and a recipe: the job of `siglip-jax train`, as a function."""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from siglip_jax._callbacks import OnProgress
from siglip_jax._files import output_path, write_atomically
from siglip_jax._lock import locked
from siglip_jax.data.example import Source
from siglip_jax.data.open import open_source
from siglip_jax.data.pipeline import Batch, Pipeline
from siglip_jax.inference.bench import peak_memory
from siglip_jax.inference.engine import Siglip
from siglip_jax.processing import SiglipProcessor
from siglip_jax.training.adapter import save_adapter
from siglip_jax.training.assembly import Plan, flops_of, make_state
from siglip_jax.training.evaluators import labels_evaluation, pairs_evaluation
from siglip_jax.training.loop import Entry, Evaluate, LoopOptions, OnMetrics, check_resumable, run_loop
from siglip_jax.training.naflex import examples_per_step, kinds_of
from siglip_jax.training.prepare import Model, Trainable, make_transform
from siglip_jax.training.processors import processor_fingerprint
from siglip_jax.training.recipe import Recipe
from siglip_jax.training.saving import gathered, identity_of, local_objective, save_model, whole
from siglip_jax.training.setup import (
    Data,
    Path_,
    Setup,
    image_tower_of,
    open_sources,
    recipe_with,
    set_up,
    with_image_embeds,
)
from siglip_jax.training.stages import enter
from siglip_jax.training.step import TrainState, make_step


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run, finished or stopped.

    Attributes:
      model: module of the trained model.
      params: its parameters; the moving average if the recipe keeps one, with LoRA weights folded in.
      processor: processor for images of the model's size.
      metrics: every line of `log.jsonl` that this call wrote: dicts with "step" and the metrics of the last steps, or
        of an evaluation.
      directory: where the run is kept: checkpoints, `log.jsonl`, `recipe.json`, and, once it is finished, `model`, and
        after a run with LoRA `adapter`, the trained additions for PEFT.
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
    kind: str | None = None,
    root: Path_ | None = None,
    **fields: Any,
) -> Run:
    """Trains a model, or resumes a run that was interrupted: the same call with the same `out`.

    Ctrl-C (in a notebook: interrupting the cell) and SIGTERM save a checkpoint and return. In a job of several
    processes call `siglip_jax.join_processes` first, and this function on every process with the same arguments.

    Args:
      data: data to train on: a path as `siglip_jax.data.open_source` takes it, a list of paths or of pairs
        (path or opened source, weight), a mapping from paths to weights, or an opened source. A weight is a share of
        the examples that are drawn; without one it is the length of the source.
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
      kind: which kind of data set `data` is in a folder of several, as `siglip_jax.data.open_source` takes it; None:
        there must be only one.
      root: folder that the images of a table must be in, for absolute paths and `..`; None: that of the table.
      **fields: fields of the recipe to change; nested ones as `optimizer=dict(rate=1e-5)` or
        `**{"optimizer.rate": 1e-5}`.

    Returns:
      The trained model with its parameters, processor and metrics.

    Raises:
      FileNotFoundError: if data or checkpoint do not exist.
      OSError: if another process trains into `out`, or the disk is full.
      ValueError: if data, checkpoint and recipe do not fit together, `out` holds another run, or the loss stays not
        finite.

    Example:
      >>> import pathlib, shutil, tempfile, siglip_jax
      >>> from siglip_jax.training import train
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     data, out = pathlib.Path(folder, "data"), pathlib.Path(folder, "run")
      ...     for name in ("horse", "lemon"):
      ...         (data / name).mkdir(parents=True)
      ...         for i in range(4):
      ...             _ = shutil.copy(siglip_jax.assets.EXAMPLES / f"{name}.png", data / name / f"{i}.png")
      ...     model = siglip_jax.assets.BUNDLED_MODEL
      ...     run = train(data, model, out, "linear-probe", batch_size=8, duration="2 steps")
      >>> run.model.config.id2label
      {0: 'horse', 1: 'lemon'}
      >>> run.steps, run.stopped, "loss" in run.metrics[0]
      (2, False, True)
    """
    directory = output_path(out)
    if best is not None and evaluate is None:
        raise ValueError(f"best must be used with evaluate, got {best!r} alone; add evaluate (--evaluate DATA)")
    recipe = recipe_with(recipe, fields)
    keys = {"image_key": image_key, "text_key": text_key, "label_key": label_key, "kind": kind, "root": root}
    sources = open_sources(data, keys)
    setup = set_up(sources, model, recipe, workers)
    judge = None
    if evaluate is not None:
        judged = evaluate if isinstance(evaluate, Source) else open_source(evaluate, **{**keys, "kind": None})
        judge = functools.partial(_evaluation, judged, recipe)
    fingerprints = {"processor": processor_fingerprint(setup.model.processor)}
    if recipe.locked_images:
        fingerprints["image_tower"] = image_tower_of(setup)
    identity = identity_of(recipe, os.fspath(model), **fingerprints)
    metrics: list[dict[str, Any]] = []

    def keep_metrics(line: dict[str, Any]) -> None:
        metrics.append(line)
        if on_metrics is not None:
            on_metrics(line)

    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory):
        data_of_run = setup.pipeline.fingerprint
        check_resumable(directory, identity, data_of_run)
        if jax.process_index() == 0:
            text = json.dumps(dataclasses.asdict(recipe), indent=2) + "\n"
            write_atomically(directory / "recipe.json", text.encode())
        if recipe.locked_images:
            tower = fingerprints["image_tower"]
            setup = with_image_embeds(setup, recipe, directory, tower, workers, on_precompute)
        state, entry, steps, stopped = make_state(setup.plan, setup.model.params), None, 0, False
        for number, stage in enumerate(setup.times.stages):
            if number:
                last = jax.tree.map(_described, state)
                setup, state, enter_state = enter(setup, number, state, workers)
                entry = Entry(stage.start, last, enter_state)
            outcome = run_loop(
                make_step(setup.plan.step, state),
                state,
                _Batches(setup.pipeline, stage.start, data_of_run),
                stage.end,
                LoopOptions(directory, save_every, keep, best, log_every, tensorboard),
                identity=identity,
                more_metrics=_speed_metrics(stage.recipe, setup.model, setup.plan),
                evaluate=None if judge is None else judge(setup),
                mesh=setup.mesh,
                on_metrics=keep_metrics,
                on_progress=on_progress,
                entry=entry,
                total=setup.plan.steps,
            )
            state, steps, stopped = outcome
            if stopped:
                break
        params = state.average_params
        if not stopped:
            save_model(directory / "model", recipe, setup.model, params)
            if recipe.lora.rank:
                save_adapter(directory / "adapter", recipe, setup.model, model, params)
    module, processor = setup.model.module, setup.model.processor
    return Run(
        module,
        whole(recipe, params),
        processor,
        metrics,
        directory,
        steps,
        setup.plan.steps,
        stopped,
    )


@dataclasses.dataclass(frozen=True)
class _Batches:
    """The batches of a stage by the steps of the run.

    Attributes:
      pipeline: batches of the stage.
      start: first step of the stage.
      fingerprint: fingerprint of the data of the run.
    """

    pipeline: Pipeline
    start: int
    fingerprint: str

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of the steps from `start` on."""
        return self.pipeline.batches(start - self.start)


def _locked(directory: Path) -> contextlib.AbstractContextManager[None]:
    """Holds the directory of a run, which the first of several processes does for all."""
    if jax.process_index():
        return contextlib.nullcontext()
    return locked(directory / ".train.lock", "a training run")


def _described(x: jax.Array) -> jax.ShapeDtypeStruct:
    """Returns the shape, dtype and sharding of an array, whose buffer a step then may take."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _evaluation(source: Source, recipe: Recipe, setup: Setup) -> Evaluate:
    """Returns the function from a state to the metrics of its evaluation."""
    objective, model = local_objective(setup.objective), setup.model
    module: Any = objective.module
    config = model.module.config
    if recipe.task == "pairs":
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
    flops = flops_of(recipe, model.module.config, model.table)
    examples = float(examples_per_step(kinds_of(recipe.naflex, recipe.batch_size, model.module.config)))

    def metrics(step: int, steps_per_second: float) -> dict[str, float]:
        line = {
            "examples_per_second": steps_per_second * examples,
            "teraflops_per_second": steps_per_second * flops / 1e12,
            "rate": recipe.optimizer.rate * float(plan.schedule(step)),
        }
        used = peak_memory()
        if "device" in used:
            return line | {"device_memory": used["device"]}
        return line | {"host_memory": used["host"]}

    return metrics
