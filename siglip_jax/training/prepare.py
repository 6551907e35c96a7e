"""Prepares a run: makes of a recipe, a checkpoint and data what the loop needs."""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from siglip_jax._files import folder_of
from siglip_jax._hub import resolve
from siglip_jax.checkpoints import read_checkpoint
from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.surgery import with_labels, with_resolution
from siglip_jax.configs.configuration import Siglip2Config, SiglipConfig
from siglip_jax.data.flexible import FlexibleTransform
from siglip_jax.data.transform import Transform, normalize_pixels
from siglip_jax.models import Siglip2ForImageClassification, Siglip2Model, SiglipForImageClassification, SiglipModel
from siglip_jax.models.cost import step_flops
from siglip_jax.models.placement import place_params
from siglip_jax.models.positions import sincos_positions
from siglip_jax.parallel.mesh import batch_shards, mesh_over
from siglip_jax.parallel.sharding import shard_params
from siglip_jax.params import flatten, unflatten
from siglip_jax.processing import Siglip2ImageProcessor, SiglipProcessor
from siglip_jax.rules import match_rules
from siglip_jax.training.costs import further_flops
from siglip_jax.training.curating import load_teacher
from siglip_jax.training.curation import CURATOR, Curator
from siglip_jax.training.flexible import check_flexible
from siglip_jax.training.joint import TEACHER, TRAINED_GROUPS, JointPairs, placed_groups, without_groups
from siglip_jax.training.lora import init_lora
from siglip_jax.training.lora import merge as merge_lora
from siglip_jax.training.naflex import kinds_of
from siglip_jax.training.objective import Labels, Objective, Pairs
from siglip_jax.training.optimizer import Treatment, make_optimizer, treatments
from siglip_jax.training.processors import processor_of_size
from siglip_jax.training.recipe import Recipe
from siglip_jax.training.step import Step, TrainState, init_state
from siglip_jax.training.timetable import timetable_of

POSITIONS = "vision_model/embeddings/position_embedding/embedding"  # path of the position table of the image tower
Trainable = SiglipModel | SiglipForImageClassification | Siglip2Model | Siglip2ForImageClassification


@dataclasses.dataclass(frozen=True)
class Model:
    """A module with its initial parameters.

    Attributes:
      module: module with the compute dtype and the mesh of the recipe.
      params: parameters, a nested dict of float32 arrays on their devices; low-rank additions under "lora".
      processor: processor for images of the module's size.
      table: treatment of each parameter by path, as from `treatments`.
      teacher: module of the teacher that chooses the pairs to train on; None: there is none.
    """

    module: Trainable
    params: dict[str, Any]
    processor: SiglipProcessor
    table: dict[str, Treatment]
    teacher: SiglipModel | None = None


def mesh_of(recipe: Recipe, devices: Sequence[Any] | None = None) -> Mesh | None:
    """Returns the mesh of a recipe over all devices; None for the only device of this process.

    Args:
      recipe: recipe with the number of devices along each axis.
      devices: devices of the mesh, which may be described ones; None: all of `jax.devices`.

    Raises:
      ValueError: if the mesh does not fit the devices, or the batch does not fit the mesh.
    """
    shape = recipe.mesh
    mesh = mesh_over(jax.devices() if devices is None else devices, shape.data, shape.fsdp, shape.tensor)
    holders = batch_shards(mesh)
    if recipe.batch_size % (holders * recipe.micro_batches):
        raise ValueError(
            f"batch_size must be a multiple of {holders} devices x {recipe.micro_batches} micro-batches, got"
            f" {recipe.batch_size}; change one of them"
        )
    read, keep = recipe.examples_per_step, 1.0 if recipe.curation.teacher is None else recipe.curation.keep
    if read % (holders * recipe.micro_batches) or round(read // holders * keep) * holders != recipe.batch_size:
        raise ValueError(
            f"batch_size / curation.keep must be a multiple of {holders} devices x {recipe.micro_batches}"
            f" micro-batches, got {recipe.batch_size} / {keep}; change one of them"
        )
    return None if mesh.size == 1 and devices is None else mesh


def prepare_model(
    recipe: Recipe, name_or_path: str | os.PathLike[str], *, labels: Sequence[str] = (), mesh: Mesh | None = None
) -> Model:
    """Reads a checkpoint and adapts it to a recipe: resolution, classes, fresh parameters and low-rank additions.

    Args:
      recipe: recipe of the run.
      name_or_path: Hub name, directory or weights file, with the files of the processor beside the weights.
      labels: names of the classes, for `task="labels"`.
      mesh: mesh over which the parameters are sharded; None: one device.

    Returns:
      The module with its parameters and processor.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if the checkpoint or the rules do not fit the recipe.
    """
    path = resolve(name_or_path)
    checkpoint = read_checkpoint(path)
    if not isinstance(checkpoint.config, SiglipConfig) or checkpoint.architecture not in _ARCHITECTURES[recipe.task]:
        raise ValueError(
            f"{name_or_path}: the checkpoint must be a whole SigLIP model for task={recipe.task!r}, got a"
            f" {checkpoint.architecture} with a {type(checkpoint.config).__name__}"
        )
    flexible = isinstance(checkpoint.config, Siglip2Config)
    if flexible:
        check_flexible(recipe, mesh)
    dropout = checkpoint.config.vision_config.attention_dropout, checkpoint.config.text_config.attention_dropout
    if any(dropout):
        raise ValueError(f"attention_dropout must be 0, as in all published models, got {max(dropout)}")
    processor = SiglipProcessor.from_pretrained(folder_of(path))
    if recipe.task == "pairs":
        processor.tokenizer.check_rows(checkpoint.config.text_config.vocab_size)
    if (
        not flexible
        and recipe.resolution is not None
        and recipe.resolution != checkpoint.config.vision_config.image_size
    ):
        checkpoint = with_resolution(checkpoint, recipe.resolution).checkpoint
    if recipe.average_pooling:
        checkpoint = _averaged(checkpoint)
    if recipe.task == "labels" and (
        checkpoint.architecture in _ARCHITECTURES["pairs"] or list(labels) != _labels(checkpoint)
    ):
        checkpoint = with_labels(checkpoint, list(labels)).checkpoint
    config: Any = checkpoint.config
    if not flexible:
        processor = processor_of_size(processor, config.vision_config.image_size)
    module = make_module(recipe, config, mesh)
    params: Mapping[str, Any] = checkpoint.params
    if recipe.fresh is not None:
        params = _with_fresh(params, module, recipe)
    if recipe.positions == "sincos":
        params = unflatten(flatten(params) | {POSITIONS: fixed_positions(config)})
    placed = place_params(params, jnp.float32, scan_layers=recipe.scan_layers, mesh=mesh)
    if recipe.lora.rank:
        lora = init_lora(jax.random.fold_in(jax.random.key(recipe.seed), 1), recipe.lora, placed)
        placed["lora"] = lora if mesh is None else shard_params(lora, mesh, ((".*", jax.P()),))
    placed = placed_groups(recipe, module, placed, mesh)
    teacher = None
    if recipe.curation.teacher is not None:
        teacher, placed[CURATOR] = load_teacher(recipe, recipe.curation.teacher, processor, mesh)
    return Model(module, placed, processor, make_table(recipe, flatten(placed)), teacher)


def averaging(config: Any) -> Any:
    """Returns the configuration of a whole model whose images are averaged over their patches."""
    vision = config.vision_config.replace(vision_use_head=False, average_pooling=True)
    return config.replace(vision_config=vision)


def fixed_positions(config: Any) -> np.ndarray:
    """Returns the position table of an image tower whose positions are not learned."""
    vision = config.vision_config
    side = math.isqrt(vision.num_patches)
    return np.asarray(sincos_positions((side, side), vision.hidden_size))


def _averaged(checkpoint: Checkpoint) -> Checkpoint:
    """Returns a checkpoint without pooling head, whose images are averaged over their patches."""
    tower = {name: x for name, x in checkpoint.params["vision_model"].items() if name != "head"}
    params = {**checkpoint.params, "vision_model": tower}
    return dataclasses.replace(checkpoint, config=averaging(checkpoint.config), params=params)


def make_module(recipe: Recipe, config: Any, mesh: Mesh | None) -> Trainable:
    """Returns the module that a recipe trains.

    Args:
      recipe: recipe of the run.
      config: configuration of the model, with the recipe's resolution and classes.
      mesh: mesh over which the batch is sharded; None: one device.
    """
    module_class = _MODULES[recipe.task][isinstance(config, Siglip2Config)]
    options: Any = {"dtype": jnp.dtype(recipe.dtype), "remat": recipe.remat, "scan_layers": recipe.scan_layers}
    return module_class(config, mesh=mesh, **options)


def make_table(recipe: Recipe, paths: Iterable[str]) -> dict[str, Treatment]:
    """Returns the treatment of each parameter of a run, by path.

    Args:
      recipe: recipe of the run.
      paths: paths of all parameters.

    Raises:
      ValueError: if the rules do not fit the parameters, or a tower is trained whose embeddings are stored.
    """
    groups = {path: path.partition("/")[0] for path in paths}
    of_teachers = [path for path, group in groups.items() if group in (TEACHER, CURATOR)]
    table = treatments(recipe.optimizer, [path for path in groups if groups[path] not in (TEACHER, CURATOR)])
    for path, entry in table.items():
        if entry.frozen and groups[path] in TRAINED_GROUPS:
            raise ValueError(
                f"optimizer.rates must train {path}, which starts from random values, got the factor 0; put the rule"
                f" ({groups[path] + '.*'!r}, 1.0) first"
            )
    if recipe.self_distillation.used and any(e.frozen for path, e in table.items() if path.startswith("vision_model/")):
        raise ValueError(
            "optimizer.rates must train vision_model/.* with self_distillation, got the factor 0; leave the weights of"
            " self_distillation at 0"
        )
    table |= dict.fromkeys(of_teachers, Treatment(0.0, 0.0))
    if recipe.positions == "sincos":
        table[POSITIONS] = Treatment(0.0, 0.0)
    if recipe.locked_images and any(not e.frozen for path, e in table.items() if path.startswith("vision_model/")):
        raise ValueError(
            "optimizer.rates must freeze vision_model/.* with locked_images, got a factor other than 0; put the rule"
            " ('vision_model/.*', 0.0) first"
        )
    return table


_MODULES: dict[str, tuple[Any, Any]] = {  # of fixed and of variable resolution
    "pairs": (SiglipModel, Siglip2Model),
    "labels": (SiglipForImageClassification, Siglip2ForImageClassification),
}
_ARCHITECTURES = {
    "pairs": tuple(module.__name__ for module in _MODULES["pairs"]),
    "labels": tuple(module.__name__ for modules in _MODULES.values() for module in modules),
}


def _labels(checkpoint: Any) -> list[str]:
    """Returns the names of the classes of a checkpoint, in the order of its logits."""
    return list((checkpoint.config.id2label or {}).values())


def _with_fresh(params: Mapping[str, Any], module: Trainable, recipe: Recipe) -> dict[str, Any]:
    """Replaces the parameters whose paths match the recipe's pattern by random ones."""
    config = module.config
    vision = config.vision_config
    if isinstance(config, Siglip2Config):
        patch = jnp.zeros((1, 1, vision.patch_size**2 * vision.num_channels), jnp.float32)
        inputs: tuple[Any, ...] = (patch, None, jnp.ones((1, 2), jnp.int32))
    else:
        inputs = (jnp.zeros((1, vision.image_size, vision.image_size, vision.num_channels), jnp.float32),)
    if recipe.task == "pairs":
        inputs = jnp.zeros((1, config.text_config.max_position_embeddings), jnp.int32), *inputs
    unstacked = module.clone(scan_layers=False, mesh=None)
    random = flatten(jax.jit(unstacked.init)(jax.random.key(recipe.seed), *inputs)["params"])
    flat = flatten(params)
    fresh = match_rules(((recipe.fresh or "", True), (".*", False)), flat, "fresh")
    return unflatten({path: random.get(path, x) if fresh[path] else x for path, x in flat.items()})


def make_transform(recipe: Recipe, processor: SiglipProcessor) -> Transform:
    """Returns the transform from an example to a row of a batch."""
    pairs = recipe.task == "pairs"
    kind = FlexibleTransform if isinstance(processor.image_processor, Siglip2ImageProcessor) else Transform
    return kind(
        processor,
        augment=recipe.augment,
        captions=pairs,
        labels=not pairs,
        boxes=recipe.captioning.boxes > 0,
        max_pixels=recipe.max_pixels,
    )


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
