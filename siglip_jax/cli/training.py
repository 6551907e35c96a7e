"""What `siglip-jax train` does once its options are known."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from siglip_jax.cli.output import progress, say
from siglip_jax.cli.training_plan import print_plan
from siglip_jax.evaluation.in_training import labels_evaluation, pairs_evaluation
from siglip_jax.files import write_atomically
from siglip_jax.inference.bench import peak_memory
from siglip_jax.inference.engine import Siglip
from siglip_jax.models import SiglipModel
from siglip_jax.parallel.distributed import join_processes
from siglip_jax.training.data.example import Source
from siglip_jax.training.data.open import open_source
from siglip_jax.training.data.pipeline import Pipeline
from siglip_jax.training.flops import step_flops
from siglip_jax.training.locked import EmbeddedTransform, embed_source
from siglip_jax.training.loop import Evaluate, Run, train
from siglip_jax.training.objective import Objective
from siglip_jax.training.prepare import (
    Model,
    Plan,
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
from siglip_jax.training.step import TrainState, make_step

STOPPED = 143  # the exit status of a program ended by SIGTERM

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """A run: what the recipe leaves open, and the recipe."""

    data: tuple[str, ...]  # tar shards, Parquet, JSON lines, CSV, Arrow, class folders; PATH=WEIGHT for a mixture
    model: str  # Hub name, directory or file that gives sizes, processor and weights
    out: Path  # directory for the model, checkpoints and log.jsonl
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    dry_run: bool = False  # say what would be done, parameter by parameter, and stop
    json: bool = False  # print JSON
    workers: int = 0  # processes that read and decode; 0: threads of this one
    image_key: str | None = None  # column of the pictures; None: one of the usual names
    text_key: str | None = None  # column of the captions
    label_key: str | None = None  # column of the labels
    save_every: int = 1000  # steps between checkpoints
    keep: int = 2  # of the last checkpoints
    log_every: int = 20  # steps between lines of the log
    evaluate: str | None = None  # data set to evaluate every checkpoint on: zero-shot, retrieval or accuracy
    best: str | None = None  # figure of the evaluation whose best checkpoint is kept too
    tensorboard: bool = False  # write TensorBoard's files too


def do(options: Options) -> int:
    """Trains, or says what would be done; returns the exit status."""
    join_processes()
    recipe = options.recipe
    sources = [_opened(text, options) for text in options.data]
    classes = [source.classes for source, _ in sources if source.classes]
    if recipe.task == "labels" and (len(classes) < len(sources) or len(set(classes)) > 1):
        raise ValueError(
            f"expected the same classes in each of {len(sources)} data sets, found {len(classes)} with classes,"
            f" {len(set(classes))} kinds of them; give data with labels"
        )
    mesh = mesh_of(recipe)
    model = prepare_model(recipe, options.model, labels=classes[0] if recipe.task == "labels" else (), mesh=mesh)
    transform = make_transform(recipe, model.processor)
    objective = make_objective(recipe, model, transform, mesh)
    if recipe.locked_images and not options.dry_run:
        sources = _embedded(sources, options, model, objective)
        transform = EmbeddedTransform(model.processor)
    pipeline = Pipeline(
        sources,
        transform,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        workers=options.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    plan = make_plan(recipe, model.table, objective, pipeline.examples, mesh)
    if options.dry_run:
        print_plan(recipe, model, plan, pipeline.examples, options.json)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        write_atomically(options.out / "recipe.json", json.dumps(dataclasses.asdict(recipe), indent=2).encode() + b"\n")
    state = make_state(plan, model.params)
    evaluate = None if options.evaluate is None else _evaluation(options, model, objective)
    run = Run(options.out, options.save_every, options.keep, options.best, options.log_every, options.tensorboard)
    outcome = train(
        make_step(plan.step, state),
        state,
        pipeline,
        plan.steps,
        run,
        identity=identity_of(recipe, options.model),
        figures=_figures(recipe, model, plan),
        evaluate=evaluate,
        mesh=mesh,
    )
    if outcome.stopped:
        say(f"stopped after step {outcome.steps} of {plan.steps}; the same command goes on")
        return STOPPED
    save_model(options.out / "model", recipe, model, outcome.state.average_params)
    if jax.process_index() == 0:
        result = {"steps": outcome.steps, "model": str(options.out / "model"), "log": str(options.out / "log.jsonl")}
        print(json.dumps(result) if options.json else f"{outcome.steps} steps done; the model is in {result['model']}")
    return 0


def _opened(text: str, options: Options) -> tuple[Any, float]:
    """Returns the source of "path" or "path=weight", and its weight: its length unless given."""
    path, equals, weight = text.rpartition("=")
    given: float | None = None
    if equals:
        with_weight = not Path(text).exists()
        try:
            given = float(weight) if with_weight else None
        except ValueError:
            given = None
    name = path if given is not None else text
    source = open_source(name, image_key=options.image_key, text_key=options.text_key, label_key=options.label_key)
    return source, float(len(source)) if given is None else given


def _embedded(
    sources: list[tuple[Source, float]], options: Options, model: Model, objective: Objective
) -> list[tuple[Source, float]]:
    """Returns sources whose pictures are embedded, each in a folder of the run."""
    transform = make_transform(options.recipe, model.processor)
    objective, params = local_objective(objective), jax.device_put(gathered(model.params))
    found: list[tuple[Source, float]] = []
    for number, (source, weight) in enumerate(sources):
        directory = options.out / "image_embeds" / str(number)
        with progress(len(source), "pictures embedded") as advance:
            found.append((embed_source(objective, params, source, transform, directory, advance), weight))
    return found


def _evaluation(options: Options, model: Model, objective: Objective) -> Evaluate:
    """Returns what evaluates a state on the data of `--evaluate`."""
    recipe, objective = options.recipe, local_objective(objective)
    module, config = objective.module, model.module.config
    source, _ = _opened(options.evaluate or "", options)
    if not isinstance(module, SiglipModel):
        transform = make_transform(dataclasses.replace(recipe, augment="none"), model.processor)
        evaluate = labels_evaluation(objective, list((config.id2label or {}).values()), source, transform)
    else:
        siglip = Siglip(module, whole(recipe, model.params), model.processor, config)
        evaluate = pairs_evaluation(siglip, source)

    def figures(state: TrainState) -> Mapping[str, float]:
        return evaluate(jax.device_put(whole(recipe, gathered(state.average_params))))

    return figures


def _figures(recipe: Recipe, model: Model, plan: Plan) -> Any:
    """Returns what the log says of speed, rate and memory, from the steps done and steps per second."""
    moving = {path.partition("/")[0] for path, entry in model.table.items() if not entry.frozen}
    texts = recipe.batch_size if recipe.task == "pairs" else 0
    flops = step_flops(
        model.module.config,
        0 if recipe.locked_images else recipe.batch_size,
        texts,
        image_trained=bool(moving & {"vision_model", "lora"}),
        text_trained=bool(moving & {"text_model", "lora"}),
    )

    def figures(step: int, steps_per_second: float) -> Mapping[str, float]:
        line = {
            "examples_per_second": steps_per_second * recipe.batch_size,
            "teraflops_per_second": steps_per_second * flops / 1e12,
            "rate": recipe.optimizer.rate * float(plan.schedule(step)),
        }
        used = peak_memory()
        if "device" in used:
            return line | {"device_memory": used["device"]}
        return line | {"host_memory": used["host"]}

    return figures
