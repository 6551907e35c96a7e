"""Optimizers with the semantics of big_vision, where SigLIP was trained: rates, decay and freezing by ordered rules.

An update is schedule · (rate · factor · direction + weight_decay · factor · parameter), and is subtracted. The weight
decay is thus the share of a parameter that a step subtracts, whatever the rate: the paper's rate 1e-3 and decay 1e-4
are `weight_decay=0.1` in `optax.adamw`.

Source: `big_vision/optax.py:make`.
"""

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from siglip_jax.params import path_of, tree_by_path
from siglip_jax.rules import match_rules
from siglip_jax.training._optax import contrib, optax
from siglip_jax.training.durations import steps_of
from siglip_jax.training.recipe import Optimizer, Schedule

# big_vision's variant of Adafactor ("Scaling Vision Transformers", Zhai et al. 2021, section 3.4).
ADAFACTOR_EXPONENT = 0.8
ADAFACTOR_SMALLEST = 32  # a dimension below this is not factored
MUON_SMALLEST = 64  # matrices with a side below this are updated by Adam


class Treatment(NamedTuple):
    """How one parameter is trained, by the rules.

    Attributes:
      rate: factor of the learning rate; 0 freezes the parameter.
      decay: factor of the weight decay.
    """

    rate: float
    decay: float

    @property
    def frozen(self) -> bool:
        """Whether the parameter is frozen."""
        return self.rate == 0


def treatments(options: Optimizer, paths: Iterable[str]) -> dict[str, Treatment]:
    """Returns how every parameter is trained.

    Args:
      options: optimizer with rules for the rate and the weight decay.
      paths: paths of all parameters.

    Returns:
      The treatment of each parameter, by path.

    Raises:
      ValueError: if no rule matches a parameter, a pattern matches none, or all parameters are frozen.
    """
    paths = list(paths)
    rates = match_rules(options.rates, paths, "optimizer.rates")
    decays = match_rules(options.decays, paths, "optimizer.decays")
    table = {path: Treatment(rates[path], 0.0 if rates[path] == 0 else decays[path]) for path in paths}
    if all(entry.frozen for entry in table.values()):
        raise ValueError(
            "optimizer.rates must give some parameter a factor other than 0, got 0 for all; nothing would be trained"
        )
    return table


def make_schedule(options: Schedule, *, steps: int, batch_size: int | Fraction, examples: int) -> Callable[[Any], Any]:
    """Returns the function from the number of steps done to the factor of rate and weight decay, from 0 to 1.

    Args:
      options: shape, warm-up and cool-down.
      steps: steps of the whole run.
      batch_size: examples of a step.
      examples: examples of an epoch.

    Raises:
      ValueError: if warm-up and cool-down are longer than the run.
    """
    units = {"batch_size": batch_size, "examples": examples, "total": steps}
    warmup, cooldown = steps_of(options.warmup, **units), steps_of(options.cooldown, **units)
    if warmup + cooldown > steps:
        raise ValueError(
            f"warm-up and cool-down must fit into the run, got {warmup} + {cooldown} of {steps} steps; shorten them"
        )

    def schedule(step: Any) -> Float[Array, ""]:
        step = jnp.asarray(step).astype(jnp.float32)
        progress = jnp.clip((step - warmup) / max(steps - warmup - cooldown, 1), 0.0, 1.0)
        factor = jnp.ones(())
        if options.shape == "cosine":
            factor = options.final + (1 - options.final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        elif options.shape == "linear":
            factor = options.final + (1 - options.final) * (1 - progress)
        elif options.shape == "rsqrt":
            shift = options.timescale - warmup
            factor = jnp.where(step >= warmup, jnp.sqrt(options.timescale / jnp.maximum(step + shift, 1.0)), 1.0)
        if warmup:
            factor = factor * jnp.minimum(step / warmup, 1.0)
        if cooldown:
            factor = factor * jnp.clip((steps - step) / cooldown, 0.0, 1.0)
        return factor

    return schedule


def _adafactor(options: Optimizer) -> optax.GradientTransformation:
    """Returns big_vision's variant of Adafactor: factored second moments and a bfloat16 first moment."""

    def decay(step: Any, exponent: Any) -> Array:
        done = jnp.asarray(step).astype(jnp.float32) + 1.0
        return jnp.minimum(options.beta2, 1.0 - done ** (-exponent))

    return optax.chain(
        optax.scale_by_factored_rms(
            decay_rate=ADAFACTOR_EXPONENT, min_dim_size_to_factor=ADAFACTOR_SMALLEST, decay_rate_fn=decay
        ),
        optax.ema(options.beta1, debias=False, accumulator_dtype=jnp.bfloat16),
    )


def _muon_dimensions(params: Any) -> Any:
    """Selects Muon for dense kernels, single or stacked, and Adam (None) for all else, small kernels included."""

    def choose(keys: tuple[Any, ...], leaf: Any) -> Any:
        path, depth = path_of(keys), len(leaf.shape) - 2
        stacked = "/layers/" in path
        if not path.endswith("/kernel") or depth != int(stacked) or min(leaf.shape[-2:]) < MUON_SMALLEST:
            return None
        return contrib.MuonDimensionNumbers(reduction_axis=depth, output_axis=depth + 1)

    return jax.tree_util.tree_map_with_path(choose, params)


def _direction(options: Optimizer) -> optax.GradientTransformation:
    """Returns the transformation of gradients into directions, before rate and decay."""
    if options.name == "adamw":
        return optax.scale_by_adam(options.beta1, options.beta2, options.epsilon)
    if options.name == "adafactor":
        return _adafactor(options)
    if options.name == "muon":
        muon = contrib.muon(
            learning_rate=1.0,
            beta=options.beta1,
            adam_b1=options.beta1,
            adam_b2=options.beta2,
            eps=options.epsilon,
            muon_weight_dimension_numbers=_muon_dimensions,
        )
        return optax.chain(muon, optax.scale(-1.0))  # undoes the minus of its learning rate
    raise ValueError(f"optimizer.name must be 'adamw', 'adafactor' or 'muon', got {options.name!r}")


def make_optimizer(
    options: Optimizer, table: Mapping[str, Treatment], schedule: Callable[[Any], Any]
) -> optax.GradientTransformation:
    """Returns the optimizer of the trained parameters; its updates are added to them.

    Args:
      options: kind of optimizer, rate, weight decay and clipping.
      table: treatment of each parameter by path, as from `treatments`; the optimizer is called with trees of exactly
        the paths that are not frozen.
      schedule: function from steps done to the factor of rate and decay, as from `make_schedule`.

    Raises:
      ValueError: if the kind of optimizer is unknown.
    """
    parts = [] if options.clip_norm is None else [optax.clip_by_global_norm(options.clip_norm)]
    parts += [_direction(options), _rates_and_decay(options, table), optax.scale_by_schedule(schedule)]
    return _unstrict(optax.chain(*parts, optax.scale(-1.0)))


def _unstrict(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Allows implicit dtype promotion within an optimizer: Optax relies on it, and users may have disabled it."""

    def init(params: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(updates, state, params)

    return optax.GradientTransformation(init, update)


def _rates_and_decay(options: Optimizer, table: Mapping[str, Treatment]) -> optax.GradientTransformation:
    """Returns the transformation that applies each parameter's rate and weight decay."""

    def update(updates: Any, params: Any) -> Any:
        if params is None:
            raise ValueError("params must be the parameters of the gradients, got None")

        def one(update: Array, param: Array, entry: Treatment) -> Array:
            scaled = options.rate * entry.rate * update
            return scaled + options.weight_decay * entry.decay * param if entry.decay else scaled

        return jax.tree.map(one, updates, params, tree_by_path(table, updates))

    return optax.stateless(update)
