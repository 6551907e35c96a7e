"""A tiny model with awkward sizes, a batch for it, and the parts of a training step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from siglip_jax import SiglipModel
from siglip_jax.params import flatten
from siglip_jax.training.objective import Pairs
from siglip_jax.training.optimizer import make_optimizer, treatments
from siglip_jax.training.recipe import Optimizer
from siglip_jax.training.step import Step, init_state, make_step
from tests.support import cases

DEFAULT = Optimizer()
CONFIG = "giant_like"  # heads that are no multiple of 64, projection unlike the width


def to_float(key, pixels):
    return pixels.astype(jnp.float32) / 127.5 - 1.0


@functools.cache
def make_model(seed=0, **fields):
    """Returns a model and random parameters, numpy arrays, temperature and bias about as in the paper."""
    config = cases.make_config(CONFIG)
    model = SiglipModel(config, **fields)
    side = config.vision_config.image_size
    ids = jnp.ones((1, config.text_config.max_position_embeddings), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(seed), ids, jnp.zeros((1, side, side, 3)))["params"]
    rng = np.random.default_rng(seed)

    def draw(keys, leaf):
        """Like what the initialisers draw, without compiling them; and no two scales or biases are alike."""
        name = keys[-1].key
        wide = 1 / np.sqrt(leaf.shape[-2]) if name == "kernel" else 0.02
        centre = {"scale": 1.0, "logit_scale": np.log(10.0), "logit_bias": -10.0}.get(name, 0.0)
        return (centre + rng.normal(scale=wide, size=leaf.shape)).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(draw, dict(shapes))


def make_batch(rows, seed=0):
    """Returns images and texts, `rows` of each."""
    config = cases.make_config(CONFIG)
    rng = np.random.default_rng(seed)
    side, text = config.vision_config.image_size, config.text_config
    return {
        "pixels": rng.integers(0, 256, (rows, side, side, 3), dtype=np.uint8),
        "input_ids": rng.integers(0, text.vocab_size, (rows, text.max_position_embeddings)).astype(np.int32),
    }


def one_step(model, params, batch, options=DEFAULT, mesh=None, schedule=lambda step: 1.0, **fields):
    """Returns (state before, as numpy; state after; figures) of a step."""
    table = treatments(options, flatten(params))
    optimizer = make_optimizer(options, table, schedule)
    objective = Pairs(model, to_float, mesh=mesh)
    step = Step(objective, optimizer, mesh=mesh, average=options.average, **fields)
    state = init_state(
        jax.tree.map(jnp.array, params), lambda path: table[path].frozen, optimizer, bool(options.average), mesh
    )
    before = jax.tree.map(np.array, state)
    return before, *make_step(step, state)(state, batch)
