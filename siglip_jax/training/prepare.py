"""Prepares what a run trains: its mesh, module, parameters and how each is treated, and the transform of its data."""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from siglip_jax._files import folder_of
from siglip_jax._hub import resolve
from siglip_jax.checkpoints import read_checkpoint
from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.surgery import with_labels, with_resolution
from siglip_jax.configs.configuration import Siglip2Config, SiglipConfig
from siglip_jax.data.flexible import FlexibleTransform
from siglip_jax.data.transform import Transform
from siglip_jax.models import Siglip2ForImageClassification, Siglip2Model, SiglipForImageClassification, SiglipModel
from siglip_jax.models.placement import place_params
from siglip_jax.models.positions import sincos_positions
from siglip_jax.parallel.mesh import batch_shards, mesh_over
from siglip_jax.parallel.sharding import shard_params
from siglip_jax.params import flatten, unflatten
from siglip_jax.processing import Siglip2ImageProcessor, SiglipProcessor
from siglip_jax.rules import match_rules
from siglip_jax.training.curating import load_teacher
from siglip_jax.training.curation import CURATOR
from siglip_jax.training.flexible import check_flexible
from siglip_jax.training.joint import TEACHER, TRAINED_GROUPS, placed_groups
from siglip_jax.training.lora import init_lora
from siglip_jax.training.optimizer import Treatment, treatments
from siglip_jax.training.processors import processor_of_size
from siglip_jax.training.recipe import Recipe

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
