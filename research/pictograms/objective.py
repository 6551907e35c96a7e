"""The objective of every training stage: the sigmoid loss of images that are augmented inside the step."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from research.pictograms.augmentation import restyle
from research.pictograms.recipe import SIZE, Stage
from research.pictograms.styles import restyle_widely
from siglip_jax.models import SiglipModel
from siglip_jax.training.objective import Pairs, Prepare


def random_params(model: SiglipModel, stage: Stage) -> dict[str, Any]:
    """Returns random parameters, with a temperature and a bias at which the first loss is small."""
    ids = jnp.ones((1, stage.positions), jnp.int32)
    pixels = jnp.zeros((1, stage.image_size, stage.image_size, 3), jnp.float32)
    params = dict(jax.jit(model.init)(jax.random.key(stage.recipe.seed), ids, pixels)["params"])
    params["logit_scale"] = jnp.full((1,), math.log(stage.temperature), jnp.float32)
    params["logit_bias"] = jnp.full((1,), -math.log(stage.texts - 1), jnp.float32)
    return params


def make_objective(model: SiglipModel, stage: Stage) -> Pairs:
    """Returns the objective for the batches of `Batches`."""
    return Pairs(model, prepare=augmentation(stage), block_size=None)


def augmentation(stage: Stage) -> Prepare:
    """Returns a function from premultiplied RGBA, (n, 64, 64, 4) uint8, to augmented pixels of the stage's size."""

    def prepare(key: Key[Array, ""], images: UInt8[Array, "n 64 64 4"]) -> Float[Array, "n size size 3"]:
        wide = round(stage.wide * len(images))  # rows are in random order, so a range is a random share
        keys = jax.random.split(key)
        parts = [restyle_widely(keys[0], images[:wide])] if wide else []
        parts += [restyle(keys[1], images[wide:])] if wide < len(images) else []
        pixels = jnp.concatenate(parts)
        return pixels if stage.image_size == SIZE else shrunk(pixels, stage.image_size)

    return prepare


def shrunk(pixels: Float[Array, "n h w 3"], size: int) -> Float[Array, "n size size 3"]:
    """Returns square images downsampled by a triangle filter, as two small matrix products."""
    old = pixels.shape[1]
    distance = (np.arange(size)[:, None] + 0.5) * (old / size) - (np.arange(old)[None] + 0.5)
    weights = np.maximum(1 - np.abs(distance) * (size / old), 0)
    matrix = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return jnp.einsum("oh,pw,nhwc->nopc", matrix, matrix, pixels)
