"""The teacher of active curation: its module and parameters, and what chooses the pairs with it."""

from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from siglip_jax._files import folder_of
from siglip_jax._hub import resolve
from siglip_jax.checkpoints import read_checkpoint
from siglip_jax.configs.configuration import SiglipConfig
from siglip_jax.models import SiglipModel
from siglip_jax.models.placement import place_params
from siglip_jax.processing import SiglipProcessor
from siglip_jax.training.curation import Curator
from siglip_jax.training.objective import Objective, Pairs
from siglip_jax.training.processors import processor_fingerprint
from siglip_jax.training.recipe import Recipe


def load_teacher(
    recipe: Recipe, name_or_path: str, processor: SiglipProcessor, mesh: Mesh | None
) -> tuple[SiglipModel, dict[str, Any]]:
    """Returns module and parameters of the teacher that chooses the pairs to train on.

    Args:
      recipe: recipe of the run.
      name_or_path: checkpoint of the teacher.
      processor: processor of the model, as which the teacher must prepare images and texts.
      mesh: mesh over which the parameters are sharded; None: one device.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if the checkpoint is none that can choose pairs for the model.
    """
    if not name_or_path:
        raise ValueError("curation.teacher must be a checkpoint, got none; name it with --curation.teacher")
    path = resolve(name_or_path)
    checkpoint = read_checkpoint(path)
    if type(checkpoint.config) is not SiglipConfig or checkpoint.architecture != "SiglipModel":
        raise ValueError(
            f"{name_or_path}: curation.teacher must be a whole SigLIP model of fixed resolution, got a"
            f" {checkpoint.architecture} with a {type(checkpoint.config).__name__}"
        )
    own = SiglipProcessor.from_pretrained(folder_of(path))
    if processor_fingerprint(own) != processor_fingerprint(processor):
        raise ValueError(
            f"{name_or_path}: curation.teacher must prepare images and texts as the model does, got a processor for"
            f" images of {checkpoint.config.vision_config.image_size} pixels that differs; choose another teacher"
        )
    module = SiglipModel(checkpoint.config, mesh=mesh, dtype=jnp.dtype(recipe.dtype), scan_layers=recipe.scan_layers)
    return module, place_params(checkpoint.params, jnp.float32, scan_layers=recipe.scan_layers, mesh=mesh)


def make_curator(recipe: Recipe, teacher: SiglipModel | None, objective: Objective) -> Curator | None:
    """Returns what chooses the pairs that a recipe trains on; None: all are.

    Args:
      recipe: recipe of the run.
      teacher: module of the teacher.
      objective: objective of the run.
    """
    if teacher is None or not isinstance(objective, Pairs):
        return None
    names = ("prepare", "contrast", "equal_texts_match", "mesh", "block_size")
    fields = {name: getattr(objective, name) for name in names}
    student = Pairs(objective.module, lora=objective.lora, **fields)
    pieces = recipe.micro_batches * recipe.examples_per_step // recipe.batch_size
    return Curator(student, Pairs(teacher, **fields), recipe.curation.keep, pieces, objective.mesh)
