"""One step of the embedded model's training: what is optimised, by what, from which start."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int32, Key, UInt8

from siglip_jax.losses.sigmoid import sigmoid_loss_of_logits
from siglip_jax.models import SiglipModel
from siglip_jax.training.embedded_augmentation import restyle
from siglip_jax.training.embedded_recipe import SIZE, Recipe
from siglip_jax.training.embedded_styles import restyle_widely


def learning_rate(recipe: Recipe, peak: float) -> optax.Schedule:
    """Linear warm-up to `peak`, then a cosine down to `final_rate` of it at the last step."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=min(recipe.warmup, recipe.steps // 2),
        decay_steps=recipe.steps,
        end_value=recipe.final_rate * peak,
    )


def _muon_dimensions(params: Any) -> Any:
    """Muon for the dense kernels; Adam (None) for embeddings, the patch convolution, norms, biases and small heads."""

    def choose(path: tuple[Any, ...], leaf: Array) -> optax.contrib.MuonDimensionNumbers | None:
        is_matrix = path[-1].key == "kernel" and leaf.ndim == 2 and min(leaf.shape) >= 64
        return optax.contrib.MuonDimensionNumbers() if is_matrix else None

    return jax.tree_util.tree_map_with_path(choose, params)


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Muon on matrices, Adam elsewhere (see `_muon_dimensions`)."""
    return optax.contrib.muon(
        learning_rate=learning_rate(recipe, recipe.muon_rate),
        weight_decay=recipe.weight_decay,
        adam_learning_rate=learning_rate(recipe, recipe.adam_rate),
        adam_b2=recipe.adam_b2,
        muon_weight_dimension_numbers=_muon_dimensions,
    )


def initial_state(
    model: SiglipModel, recipe: Recipe, optimizer: optax.GradientTransformation, start: Any = None
) -> dict[str, Any]:
    """Parameters (`start`, or else random), their moving average, the optimizer's state, the number of steps done."""
    # Copies, as a step gives its state away: the caller keeps the start, and the average is not the parameters.
    params = jax.tree.map(jnp.array, start) if start is not None else _random(model, recipe)
    average = jax.tree.map(jnp.copy, params)
    return {"params": params, "average": average, "optimizer": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}


def _random(model: SiglipModel, recipe: Recipe) -> dict[str, Any]:
    ids = jnp.ones((1, recipe.positions), jnp.int32)
    pixels = jnp.zeros((1, 64, 64, 3), jnp.float32)
    params = dict(model.init(jax.random.key(recipe.seed), input_ids=ids, pixel_values=pixels)["params"])
    params["logit_scale"] = jnp.full((1,), math.log(recipe.temperature), jnp.float32)
    params["logit_bias"] = jnp.full((1,), -math.log(recipe.texts - 1), jnp.float32)
    return params


def shrunk(pixels: Float[Array, "n h w 3"], size: int) -> Float[Array, "n size size 3"]:
    """Square pictures made smaller by a triangle filter, as two small matrix products."""
    old = pixels.shape[1]
    distance = (np.arange(size)[:, None] + 0.5) * (old / size) - (np.arange(old)[None] + 0.5)
    weights = np.maximum(1 - np.abs(distance) * (size / old), 0)
    matrix = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return jnp.einsum("oh,pw,nhwc->nopc", matrix, matrix, pixels)


def make_step(
    model: SiglipModel, recipe: Recipe, optimizer: optax.GradientTransformation, size: int = SIZE
) -> Callable[..., Any]:
    """The jitted step: (state, pictures, input_ids) to (state, loss); the state passed in is given away.

    Args:
      size: pixels that the pictures are shrunk to; the positions are interpolated.
    """
    augment = restyle_widely if recipe.wide else restyle

    def loss_of(params: Any, pixels: Float[Array, "n h w 3"], ids: Int32[Array, "m t"]) -> Float[Array, ""]:
        out: Any = model.apply(
            {"params": params}, input_ids=ids, pixel_values=pixels, interpolate_pos_encoding=size != SIZE
        )
        first = jnp.eye(len(pixels), len(ids), dtype=bool)  # match by row; the other texts match no picture
        return sigmoid_loss_of_logits(out.logits_per_image, first)

    def step(
        state: dict[str, Any], pictures: UInt8[Array, "n 64 64 4"], ids: Int32[Array, "m t"]
    ) -> tuple[dict[str, Any], Float[Array, ""]]:
        key: Key[Array, ""] = jax.random.fold_in(jax.random.key(recipe.seed + 1), state["step"])
        pixels = augment(key, pictures)
        if size != SIZE:
            pixels = shrunk(pixels, size)
        loss, gradients = jax.value_and_grad(loss_of)(state["params"], pixels, ids)
        updates, optimizer_state = optimizer.update(gradients, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        done = state["step"] + 1
        # The average of a young run must not remember the start.
        decay = jnp.minimum(recipe.average, done.astype(jnp.float32) / (done.astype(jnp.float32) + 10))
        average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), state["average"], params)
        return {"params": params, "average": average, "optimizer": optimizer_state, "step": done}, loss

    return jax.jit(step, donate_argnums=0)
