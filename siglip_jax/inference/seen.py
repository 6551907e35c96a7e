"""What an image tower sees of an image: its inputs, the grid of patches, the part that they cover, and its states."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import PIL.Image
from jaxtyping import Array, Float

from siglip_jax.checkpoints.keymap import VISION
from siglip_jax.configs.towers import tower_config
from siglip_jax.inference.encoder import Encoder, jitted
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.stream import Arrays
from siglip_jax.inference.towers import features
from siglip_jax.models.elementwise import normalize
from siglip_jax.models.naflex import VariableResolution
from siglip_jax.models.outputs import TowerOutput
from siglip_jax.models.patches import check_patches
from siglip_jax.models.pooling import WEIGHTS, PoolingHead
from siglip_jax.models.pretrained import PretrainedModule
from siglip_jax.models.vision import check_pixels
from siglip_jax.processing.images.pixels import target_size
from siglip_jax.processing.images.siglip2 import grid_of

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class Seen(NamedTuple):
    """An image as an image tower gets it.

    Attributes:
      arrays: inputs of the tower, without a batch axis.
      grid: rows and columns of patches.
      box: top, left, bottom and right of the part of the image that the patches cover, as shares of its height and
        width; beyond 0 to 1 where the processor adds margins.
    """

    arrays: Arrays
    grid: tuple[int, int]
    box: Box


class States(NamedTuple):
    """What the tower and its pooling head make of a batch of images; padding is included.

    Attributes:
      attention: weights of the pooling head, (images, heads, patches) float32, which sum to 1 over the patches.
      alone: embedding of each patch as if the head attended to it alone, (images, patches, width), L2-normalised.
      raw: last hidden state of each patch, (images, patches, width), L2-normalised.
    """

    attention: Float[Array, "images heads patches"]
    alone: Float[Array, "images patches width"]
    raw: Float[Array, "images patches width"]


def see(siglip: Siglip, image: PIL.Image.Image, own_aspect: bool = False) -> Seen:
    """Returns an image as the image tower of a model gets it.

    Args:
      siglip: model with its processor.
      image: image as `load_image` returns it.
      own_aspect: whether an image for a model of fixed resolution keeps its proportions, by the rule of the models of
        variable resolution; the tower must then resize its position table.
    """
    config, processor = tower_config(siglip.config, VISION), siglip.processor.image_processor
    patch = config.patch_size
    if isinstance(features(siglip.model, VISION)[0], VariableResolution):
        arrays = siglip.pixels(image)
        rows, columns = np.asarray(arrays[2]).tolist()
        return Seen(arrays, (rows, columns), WHOLE)
    if own_aspect:
        rows, columns = grid_of(image.height, image.width, patch, config.num_patches)
        steps = {"do_resize": True, "size": (rows * patch, columns * patch), "do_center_crop": False, "do_pad": False}
        (pixels,) = processor(image, return_tensors="np", **steps).pixel_values
        return Seen((pixels,), (rows, columns), WHOLE)
    (pixels,) = siglip.pixels(image)
    height, width, top, left = image.height, image.width, 0, 0
    if processor.do_resize:
        height, width = target_size(height, width, processor.size)
    if processor.do_center_crop:
        top, left = (height - processor.crop_size["height"]) // 2, (width - processor.crop_size["width"]) // 2
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    bottom, right = top + rows * patch, left + columns * patch
    return Seen((pixels,), (rows, columns), (top / height, left / width, bottom / height, right / width))


def between_cells(length: int, cells: int, start: float, end: float) -> Float[np.ndarray, "length cells"]:
    """Returns the weights that interpolate cells linearly between their centres, for each pixel of an axis.

    Args:
      length: number of pixels.
      cells: number of cells, which divide a part of the axis evenly.
      start: start of the part, as a share of the axis.
      end: end of the part, as a share of the axis; beyond the outermost centres the outermost cells count.
    """
    at = ((np.arange(length) + 0.5) / length - start) / (end - start) * cells - 0.5
    return np.maximum(1 - np.abs(np.clip(at, 0, cells - 1)[:, None] - np.arange(cells)), 0)


def states_of(siglip: Siglip, batch: Arrays, own_aspect: bool = False) -> States:
    """Returns what the tower and its pooling head make of a batch of images.

    Raises:
      ValueError: if the tower has no pooling head.
    """
    model, _ = features(siglip.model, VISION)
    check_head(model)
    return _states(model, own_aspect, siglip.image_encoder.params, *batch)


def check_head(model: PretrainedModule) -> None:
    """Raises a `ValueError` if an image tower has no pooling head."""
    if not getattr(model.config, "vision_config", model.config).vision_use_head:
        raise ValueError(
            "vision_use_head must be True for maps of what an image tower attends to, got False; load a model with a"
            " pooling head"
        )


def encoder_at(siglip: Siglip, own_aspect: bool) -> Encoder:
    """Returns the image tower as a function from arrays to embeddings; of images of any size with `own_aspect`."""
    encoder = siglip.image_encoder
    if not own_aspect:
        return encoder
    model: Any = features(siglip.model, VISION)[0]
    return encoder._replace(function=_at_any_size(model, siglip.choices.image_rows))


@functools.lru_cache(maxsize=8)
def _at_any_size(model: PretrainedModule, most: int | None) -> Any:
    return jitted(model, lambda module, *inputs: tower_output(module, True, *inputs).embedding, most)


def tower_output(module: Any, own_aspect: bool, *inputs: Any, hidden_states: bool = False) -> TowerOutput:
    """Returns the output of the image tower within a model: a method for `apply`.

    Args:
      module: bound module with an image tower.
      own_aspect: whether the position table is resized to images of another size.
      *inputs: inputs of the tower.
      hidden_states: whether to return the output of each layer.
    """
    config = getattr(module.config, "vision_config", module.config)
    if isinstance(module, VariableResolution):
        pixels, mask, grids = inputs
        return module.vision_model(check_patches(pixels, mask, grids, config), hidden_states)
    return module.vision_model(check_pixels(inputs[0], config, own_aspect), own_aspect, hidden_states)


def pooling_weights(state: Any) -> Float[Array, "images heads patches"]:
    """Returns the weights of the pooling head from the collections that `apply(mutable=["intermediates"])` returns."""
    (weights,) = state["intermediates"]["vision_model"]["head"]["attention"][WEIGHTS]
    return weights.swapaxes(1, 2).astype("float32")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _states(model: PretrainedModule, own_aspect: bool, params: dict[str, Any], *inputs: Array) -> States:
    out, state = model.apply({"params": params}, own_aspect, *inputs, method=tower_output, mutable=["intermediates"])
    config = getattr(model.config, "vision_config", model.config)
    tokens: Any = out.last_hidden_state
    # With one token the weight of the head is 1: its value, out projection and MLP act on the token alone.
    head = PoolingHead(config, model.options)
    alone: Any = head.apply({"params": params["vision_model"]["head"]}, tokens.reshape(-1, 1, tokens.shape[-1]))
    return States(pooling_weights(state), normalize(alone).reshape(tokens.shape), normalize(tokens))
