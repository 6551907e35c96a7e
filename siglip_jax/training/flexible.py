"""Models of variable resolution in a run: what they are not trained with, and how another model becomes one."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from siglip_jax.configs.configuration import Siglip2Config, Siglip2TextConfig, Siglip2VisionConfig, SiglipConfig
from siglip_jax.parallel.mesh import batch_shards
from siglip_jax.processing import Siglip2ImageProcessor, SiglipProcessor
from siglip_jax.training.processors import processor_of_size
from siglip_jax.training.recipe import Recipe
from siglip_jax.training.terms import Late


def check_flexible(recipe: Recipe, mesh: Mesh | None) -> None:
    """Refuses what a model of variable resolution has no use for, and steps that do not fit the mesh."""
    if recipe.resolution is not None:
        raise ValueError(
            f"resolution must be None for a model of variable resolution, got {recipe.resolution}; set naflex.lengths"
        )
    if recipe.positions != "learned":
        raise ValueError(
            f"positions must be 'learned' for a model of variable resolution, got {recipe.positions!r}; leave it out"
        )
    more = ["self_distillation"] * recipe.self_distillation.used + ["growth"] * recipe.growth.used
    more += ["curation"] * (recipe.curation.teacher is not None) + ["late"] * recipe.late.used
    if more:
        raise ValueError(
            f"{more[0]} must not be used with a model of variable resolution, got {getattr(recipe, more[0])}; leave it"
            " out"
        )
    if recipe.locked_images:
        raise ValueError(
            "locked_images must be False for a model of variable resolution, whose images have several lengths, got"
            " True; freeze with optimizer.rates instead"
        )
    check_lengths(recipe, mesh)


def check_lengths(recipe: Recipe, mesh: Mesh | None) -> None:
    """Refuses steps of images of variable resolution that do not fit the mesh."""
    holders = batch_shards(mesh)
    for length, examples in recipe.naflex.steps(recipe.batch_size):
        if examples % (holders * recipe.micro_batches):
            raise ValueError(
                f"a step of {length} patches must have a multiple of {holders} devices x {recipe.micro_batches}"
                f" micro-batches, got {examples} examples; change batch_size or naflex.full_batch"
            )


def late_config(config: Any, late: Late) -> Any:
    """Returns the configuration of a model after a late change.

    Args:
      config: configuration of the whole model.
      late: the change.
    """
    vision = config.vision_config
    if late.naflex:
        return _flexible(config)
    if late.patch_size is not None:
        side = vision.image_size // vision.patch_size
        vision = vision.replace(patch_size=late.patch_size, image_size=side * late.patch_size)
    if late.resolution is not None:
        vision = vision.replace(image_size=late.resolution)
    return config.replace(vision_config=vision)


def _flexible(config: SiglipConfig) -> Siglip2Config:
    """Returns the configuration of a model of variable resolution with the sizes of one of fixed resolution."""
    vision, text = config.vision_config, config.text_config
    names = {field.name for field in dataclasses.fields(Siglip2VisionConfig)} - {"num_patches"}
    towers = {
        "vision_config": Siglip2VisionConfig(
            **{name: getattr(vision, name) for name in names}, num_patches=vision.num_patches
        ),
        "text_config": Siglip2TextConfig(
            **{field.name: getattr(text, field.name) for field in dataclasses.fields(Siglip2TextConfig)}
        ),
    }
    rest = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name not in towers}
    return Siglip2Config(**towers, **rest)


def processor_of(processor: SiglipProcessor, config: Any) -> SiglipProcessor:
    """Returns the processor of a model after a change of its images."""
    vision, images = config.vision_config, processor.image_processor
    if not isinstance(vision, Siglip2VisionConfig):
        return processor_of_size(processor, vision.image_size)
    if not isinstance(images, Siglip2ImageProcessor):
        known = {name: value for name, value in images.to_dict().items() if name in _OF_PIXELS}
        images = Siglip2ImageProcessor(**known, patch_size=vision.patch_size, max_num_patches=vision.num_patches)
    return SiglipProcessor(images, processor.tokenizer, max_length=processor.max_length)


_OF_PIXELS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
