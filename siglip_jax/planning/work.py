"""What a plan compiles: a training step or a forward pass with arrays that are nowhere but know where they would be."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from siglip_jax.configs.configuration import Config, Siglip2Config, Siglip2VisionConfig, SiglipConfig
from siglip_jax.configs.towers import towers_of
from siglip_jax.data.regions import TASKS
from siglip_jax.models.cost import image_flops, text_flops
from siglip_jax.models.elementwise import normalize
from siglip_jax.models.pretrained import PretrainedModule
from siglip_jax.parallel.mesh import BATCH_AXES
from siglip_jax.parallel.sharding import shardings
from siglip_jax.params import flatten, unflatten
from siglip_jax.training.assembly import flops_of, make_plan, objective_of
from siglip_jax.training.durations import parse_duration
from siglip_jax.training.flexible import check_flexible, check_lengths, late_config
from siglip_jax.training.joint import placed_groups
from siglip_jax.training.lora import init_lora
from siglip_jax.training.naflex import kinds_of
from siglip_jax.training.prepare import averaging, make_module, make_table
from siglip_jax.training.recipe import Recipe
from siglip_jax.training.step import init_state, make_step, state_shardings

PUBLISHED = ((0.5,) * 3, (0.5,) * 3, 1 / 255)  # mean, deviation and factor of the pixels of all published models
CLASSES = 1000  # of a classifier whose labels are not known
MANY = 10**6  # batches of an epoch whose length is not known


class Work(NamedTuple):
    """A function to compile.

    Attributes:
      function: jitted function.
      arguments: trees of shapes with shardings.
      flops: operations of the model in one run, on all devices, without those that remat repeats.
      steps: steps of the whole run; None where it is not known, or the work is no training.
      examples: examples of one run, on all devices.
      patches: length of the sequences of images; None for images of one size.
    """

    function: Any
    arguments: tuple[Any, ...]
    flops: int
    steps: int | None
    examples: int
    patches: int | None = None


def training_steps(
    config: Config, recipe: Recipe, mesh: Mesh, examples: int | None, classes: int | None = None
) -> list[Work]:
    """Returns the step of a recipe; for images of variable resolution one for each length of the recipe, in order.

    Args:
      config: configuration of the model.
      recipe: recipe of the run, or of a stage of it.
      mesh: mesh of the run.
      examples: examples of an epoch; None: unknown.
      classes: classes of a recipe that trains a classifier; None: those of the model, or `CLASSES` if it has none.

    Raises:
      ValueError: if the model and the recipe do not fit together.
    """
    if not isinstance(config, SiglipConfig):
        raise ValueError(
            f"the model of a recipe must be a whole SigLIP model, got a {type(config).__name__}; leave out the recipe"
            " to plan the forward pass"
        )
    if recipe.average_pooling:
        config = averaging(config)
    if isinstance(config, Siglip2Config):
        check_flexible(recipe, mesh)
    elif recipe.resolution is not None:
        config = config.replace(vision_config=config.vision_config.replace(image_size=recipe.resolution))
    if recipe.late.used:
        config = late_config(config, recipe.late)
    if recipe.late.naflex:
        check_lengths(recipe, mesh)
    if recipe.task == "labels":
        own = config.num_labels if config.id2label != {0: "LABEL_0", 1: "LABEL_1"} else CLASSES
        config = config.replace(num_labels=classes or own)
    module = make_module(recipe, config, mesh)
    params = shapes_of_params(module, config)
    if recipe.lora.rank:
        params["lora"] = jax.eval_shape(lambda p: init_lora(jax.random.key(0), recipe.lora, p), params)
    params = jax.eval_shape(lambda p: placed_groups(recipe, module, p, None), params)
    table = make_table(recipe, flatten(params))
    length = parse_duration(recipe.duration)[1]
    mean, deviation, factor = PUBLISHED
    values = config.vision_config.patch_size**2 if isinstance(config, Siglip2Config) else 1  # of a patch
    objective = objective_of(recipe, module, (mean * values, deviation * values, factor), mesh)
    plan = make_plan(recipe, table, objective, examples or MANY * recipe.batch_size, mesh)
    step = plan.step

    def initial(params: Any) -> Any:
        return init_state(params, lambda path: table[path].frozen, step.optimizer, step.average is not None)

    state = jax.eval_shape(initial, params)
    state = jax.tree.map(_at, state, state_shardings(state, mesh))
    steps = None if examples is None and length == "epochs" else plan.steps
    function, found = make_step(step, state), []
    for patches, rows in dict.fromkeys(kinds_of(recipe.naflex, recipe.batch_size, config)):
        batch = {name: _at(x, _rows(mesh)) for name, x in _batch(recipe, config, rows, patches).items()}
        flops = flops_of(recipe, config, table, ((patches, rows),))
        found.append(Work(function, (state, batch), flops, steps, rows, patches))
    return found


def forward_pass(module: PretrainedModule, batch: int, mesh: Mesh) -> Work:
    """Returns the forward pass of a model or tower, from pixels and ids to normalised embeddings.

    Args:
      module: module with the compute dtype; its mesh is replaced.
      batch: images and texts over all devices.
      mesh: mesh of the run.
    """
    module = module.clone(mesh=mesh)
    inputs = inputs_of(module.config, batch)
    flat = flatten(shapes_of_params(module, module.config))
    where = shardings({path: tuple(x.shape) for path, x in flat.items()}, mesh)
    dtype = module.param_dtype if module.dtype is None else module.dtype
    params = {path: jax.ShapeDtypeStruct(x.shape, dtype, sharding=where[path]) for path, x in flat.items()}

    def embeddings(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
        out: Any = module.apply({"params": params}, **inputs)
        found = {name: getattr(out, name, None) for name in ("image_embeds", "text_embeds", "logits")}
        if not any(x is not None for x in found.values()):
            found = {"embedding": normalize(out.embedding)}
        return {name: x for name, x in found.items() if x is not None}

    placed = {name: _at(x, _rows(mesh)) for name, x in inputs.items()}
    out = jax.tree.map(lambda _: _rows(mesh), jax.eval_shape(embeddings, unflatten(params), placed))
    function = jax.jit(embeddings, out_shardings=out)
    vision, text = towers_of(module.config)
    flops = text_flops(text) if text is not None and "input_ids" in inputs else 0
    flops += image_flops(vision) if vision is not None else 0
    return Work(function, (unflatten(params), placed), batch * flops, None, batch)


def shapes_of_params(module: PretrainedModule, config: Any) -> dict[str, Any]:
    """Returns the parameters of a module as shapes, without computing them."""
    init = module.clone(mesh=None).init
    return dict(jax.eval_shape(lambda x: init(jax.random.key(0), **x), inputs_of(config, 1, module))["params"])


def inputs_of(config: Any, batch: int, module: Any = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the inputs of a module by the names of its arguments, as shapes."""
    vision, text = towers_of(config)
    if text is not None and type(module).__name__.endswith("Classification"):
        text = None
    found = {}
    if text is not None:
        found["input_ids"] = jax.ShapeDtypeStruct((batch, text.max_position_embeddings), jnp.int32)
    if isinstance(vision, Siglip2VisionConfig):
        patches, width = vision.num_patches, vision.patch_size**2 * vision.num_channels
        found["pixel_values"] = jax.ShapeDtypeStruct((batch, patches, width), jnp.float32)
        found["pixel_attention_mask"] = jax.ShapeDtypeStruct((batch, patches), jnp.int32)
        found["spatial_shapes"] = jax.ShapeDtypeStruct((batch, 2), jnp.int32)
    elif vision is not None:
        size = vision.image_size
        found["pixel_values"] = jax.ShapeDtypeStruct((batch, size, size, vision.num_channels), jnp.float32)
    return found


def _batch(recipe: Recipe, config: SiglipConfig, rows: int, patches: int | None) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns a batch of a recipe by the names that its objective reads, as shapes."""
    vision, text = config.vision_config, config.text_config
    if recipe.locked_images:
        found = {"image_embeds": jax.ShapeDtypeStruct((rows, text.embedding_size), jnp.float32)}
    elif patches is not None:
        values = vision.patch_size**2 * vision.num_channels
        found = {
            "pixels": jax.ShapeDtypeStruct((rows, patches, values), jnp.uint8),
            "spatial_shapes": jax.ShapeDtypeStruct((rows, 2), jnp.int32),
        }
    else:
        images = (rows, vision.image_size, vision.image_size, vision.num_channels)
        found = {"pixels": jax.ShapeDtypeStruct(images, jnp.uint8)}
    if recipe.task == "labels":
        return found | {"label": jax.ShapeDtypeStruct((rows,), jnp.int32)}
    tokens = text.max_position_embeddings
    if recipe.captioning.boxes:
        shape = (rows, len(TASKS), tokens)
        found["region_ids"] = jax.ShapeDtypeStruct(shape, jnp.int32)
        found["region_weights"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return found | {"input_ids": jax.ShapeDtypeStruct((rows, tokens), jnp.int32)}


def _rows(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def _at(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
