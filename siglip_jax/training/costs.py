"""Operations of the losses that a recipe adds to the contrastive one, and the bytes of what they train."""

from collections.abc import Mapping, Sequence
from typing import Any

from siglip_jax.configs.configuration import SiglipConfig
from siglip_jax.models.cost import FORWARD_AND_BACKWARD, image_flops, layer_flops
from siglip_jax.training.joint import TEACHER, view_size_of
from siglip_jax.training.naflex import kinds_of
from siglip_jax.training.recipe import Recipe

ADAM = 4  # float32 arrays of a trained parameter's size: the parameter, its gradient and both moments
GROUPS = {  # parameters of each loss
    "captioning": ("decoder",),
    "boxes": (),  # those of captioning
    "teacher": (TEACHER,),
    "distillation": ("distillation_head",),
    "masked": ("masked_head", "mask_token"),
}


def further_flops(
    recipe: Recipe, config: SiglipConfig, kinds: Sequence[tuple[int | None, int]] | None = None
) -> dict[str, int]:
    """Returns the floating-point operations of a step for each further loss, on all devices, and for the teacher.

    The towers' own pass over images and texts, which the contrastive and the captioning loss share, is not included,
    nor is what remat and the blocks of the captioning loss repeat.

    Args:
      recipe: recipe of the run.
      config: configuration of the model.
      kinds: (length, examples) of each kind of step, over which is averaged; None: all of the recipe's.
    """
    kinds = kinds or kinds_of(recipe.naflex, recipe.batch_size, config)
    each = [_flops_of_example(recipe, config, length) for length, _ in kinds]
    return {
        name: round(sum(flops[name] * examples for flops, (_, examples) in zip(each, kinds, strict=True)) / len(kinds))
        for name in each[0]
    }


def _flops_of_example(recipe: Recipe, config: SiglipConfig, length: int | None) -> dict[str, int]:
    """Returns the operations of each further loss for an example; `length` is that of its patches, if it varies."""
    text, vision, own = config.text_config, config.vision_config, recipe.self_distillation
    found = {}
    if recipe.captioning.weight:
        tokens, width, patches = text.max_position_embeddings, text.hidden_size, length or vision.num_patches
        layers = recipe.captioning.layers or max(text.num_hidden_layers // 2, 1)
        across = 4 * tokens * width**2 + 4 * patches * vision.hidden_size * width + 4 * tokens * patches * width
        logits = 2 * tokens * width * text.vocab_size
        found["captioning"] = FORWARD_AND_BACKWARD * (layers * (layer_flops(text, tokens) + across) + logits)
        if recipe.captioning.boxes:
            found["boxes"] = 2 * found["captioning"]
    if own.used:
        width, hidden, bottleneck = vision.hidden_size, own.hidden, own.bottleneck
        head = 2 * (width * hidden + hidden**2 + hidden * bottleneck + bottleneck * own.prototypes)
        small = (view_size_of(own, vision) // vision.patch_size) ** 2
        found["teacher"] = image_flops(vision)
        if own.weight:
            found["teacher"] += head
            found["distillation"] = FORWARD_AND_BACKWARD * own.views * (image_flops(vision, small) + head)
        if own.masked_weight:
            found["teacher"] += vision.num_patches * head
            found["masked"] = FORWARD_AND_BACKWARD * (image_flops(vision) + vision.num_patches * head)
    return found


def group_bytes(shapes: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """Returns the bytes of groups of parameters, with gradients and moments where they are trained, on all devices.

    Args:
      shapes: number of values of each parameter, by path.
      names: groups.
    """
    of_groups = {path: size for path, size in shapes.items() if path.partition("/")[0] in names}
    return sum(4 * size * (1 if path.startswith(TEACHER) else ADAM) for path, size in of_groups.items())
