"""Updates equal big_vision's, computed here from its formulae in float64; rules and schedules mean what they say."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from siglip_jax.params import flatten, unflatten
from siglip_jax.training.optimizer import make_optimizer, make_schedule, treatments
from siglip_jax.training.recipe import Optimizer, Schedule
from tests.support import steps

RATES = ((".*vision_model/head/.*", 0.1), ("text_model/embeddings/.*", 0.0), (".*", 1.0))
STEPS = 3


def schedule(step):
    return jnp.asarray([0.5, 1.0, 0.25])[step]


def adam(gradients, options):
    """Yields big_vision's directions: optax's `scale_by_adam`, with its bias corrections."""
    mean = square = 0.0
    for t, g in enumerate(gradients, 1):
        mean = options.beta1 * mean + (1 - options.beta1) * g
        square = options.beta2 * square + (1 - options.beta2) * g**2
        yield (mean / (1 - options.beta1**t)) / (np.sqrt(square / (1 - options.beta2**t)) + options.epsilon)


def adafactor(gradients, options):
    """Yields those of big_vision's `scale_by_adafactor`: factored squares, and a bfloat16 mean without correction."""
    row = column = square = 0.0
    mean = np.zeros_like(gradients[0])
    for t, g in enumerate(gradients, 1):
        decay = min(options.beta2, 1 - t**-0.8)
        squares = g**2 + 1e-30
        order = np.argsort(g.shape)
        if g.ndim >= 2 and g.shape[order[-2]] >= 32:
            small, large = int(order[-2]), int(order[-1])
            row = decay * row + (1 - decay) * squares.mean(large)
            column = decay * column + (1 - decay) * squares.mean(small)
            rows, columns = np.expand_dims(row, large), np.expand_dims(column, small)
            direction = g / np.sqrt(rows / rows.mean(small, keepdims=True)) / np.sqrt(columns)
        else:
            square = decay * square + (1 - decay) * squares
            direction = g / np.sqrt(square)
        decay = float(ml_dtypes.bfloat16(options.beta1))  # what 0.9 becomes beside a bfloat16 mean
        mean = decay * mean.astype(ml_dtypes.bfloat16).astype(np.float64) + (1 - options.beta1) * direction
        yield mean


@pytest.mark.slow
@pytest.mark.parametrize(("name", "formula"), [("adamw", adam), ("adafactor", adafactor)])
def test_steps_equal_big_visions_formulae(name, formula):
    """Clip, direction, rate, factor, decay after the rate, schedule over both, minus: in big_vision's order."""
    options = Optimizer(name=name, rates=RATES, weight_decay=1e-3, clip_norm=0.7)
    _, params = steps.make_model()
    flat = flatten(params)
    table = treatments(options, flat)
    rng = np.random.default_rng(1)
    trained = {path: np.asarray(x) for path, x in flat.items() if not table[path].frozen}
    gradients = [
        {path: rng.normal(scale=0.01, size=x.shape).astype(np.float32) for path, x in trained.items()}
        for _ in range(STEPS)
    ]
    optimizer = make_optimizer(options, table, schedule)
    found = unflatten({path: jnp.asarray(x) for path, x in trained.items()})
    state = jax.jit(optimizer.init)(found)

    @jax.jit
    def update(gradients, state, params):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    norms = [np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in step.values())) for step in gradients]
    assert min(norms) > 0.7  # or the clipping would not be seen

    def clipped(path):
        return [step[path].astype(np.float64) * 0.7 / n for step, n in zip(gradients, norms, strict=True)]

    directions = {path: list(formula(clipped(path), options)) for path in trained}
    expected = {path: x.astype(np.float64) for path, x in trained.items()}
    for t in range(STEPS):
        found, state = update(unflatten(gradients[t]), state, found)
        for path, x in expected.items():
            factor = 0.1 if "vision_model/head/" in path else 1.0
            decay = 1e-3 if path.endswith("/kernel") else 0.0
            before = np.asarray(x, np.float32).astype(np.float64)
            after = before - float(schedule(t)) * (1e-3 * factor * directions[path][t] + decay * before)
            difference = np.abs(np.asarray(flatten(found)[path]) - after).max()
            rounding = np.spacing(
                np.float32(np.abs(after).max())
            )  # the bias is -10: a unit of its last place is 9.5e-7
            # From the second step on, a rounding of adafactor's bfloat16 mean may fall to the other side.
            tolerance = 4e-7 if t and name == "adafactor" else 1e-7
            assert difference <= max(tolerance, rounding), (path, t, difference)
            expected[path] = np.asarray(flatten(found)[path])  # roundings do not add up over the steps


def test_weight_decay_is_the_papers_and_not_a_thousandth_of_it():
    options = Optimizer(rate=1e-3, weight_decay=1e-4, clip_norm=None)
    params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    optimizer = make_optimizer(options, treatments(options, flatten(params)), lambda step: 1.0)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], -1e-4, rtol=1e-6)
    np.testing.assert_array_equal(updates["a"]["bias"], 0.0)


def test_only_kernels_decay_of_a_whole_model():
    _, params = steps.make_model()
    table = treatments(Optimizer(), flatten(params))
    assert {path.rpartition("/")[2] for path, entry in table.items() if entry.decay} == {"kernel"}
    assert {"logit_scale", "logit_bias", "vision_model/head/probe"} <= {p for p, e in table.items() if not e.decay}


@pytest.mark.slow
def test_frozen_parameters_have_no_state_and_do_not_move():
    model, params = steps.make_model()
    options = Optimizer(rates=(("vision_model/.*", 0.0), (".*", 1.0)))
    before, after, _ = steps.one_step(model, params, steps.make_batch(4), options)
    assert all(path.startswith("vision_model/") for path in flatten(before.frozen))
    moments = sum(x.size for x in jax.tree.leaves(after.optimizer) if x.ndim)
    assert moments == 2 * sum(x.size for x in jax.tree.leaves(after.trained))
    for path, x in flatten(before.frozen).items():
        np.testing.assert_array_equal(x, flatten(after.frozen)[path])


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
def test_muon_takes_dense_matrices_stacked_or_not_and_orthogonalises_each(scan_layers):
    _, params = steps.make_model(scan_layers=scan_layers)
    options = Optimizer(name="muon", rate=1.0, weight_decay=0.0, clip_norm=None)
    optimizer = make_optimizer(options, treatments(options, flatten(params)), lambda step: 1.0)
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    updates = flatten(jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p))(gradients, params)[0])
    layers = "layers" if scan_layers else "layers_0"
    matrix = np.asarray(updates[f"vision_model/encoder/{layers}/mlp/fc1/kernel"])
    matrix = matrix[0] if scan_layers else matrix
    spread = np.linalg.svd(matrix, compute_uv=False)
    assert spread.min() / spread.max() > 0.6  # of a random matrix of this form: below 0.4
    table = np.abs(updates["text_model/embeddings/token_embedding/embedding"])
    np.testing.assert_allclose(table, table[0, 0], rtol=1e-3)  # the first step of Adam, here with Nesterov's momentum


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Schedule("cosine", "10 steps"), {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.5, 100: 0.0}),
        (Schedule("linear", "10 percent", final=0.2), {10: 1.0, 55: 0.6, 100: 0.2}),
        (Schedule("constant", "0 steps", "20 steps"), {0: 1.0, 80: 1.0, 90: 0.5, 99: 0.05}),
        (Schedule("rsqrt", "10 steps", "20 steps", timescale=40.0), {10: 1.0, 50: (40 / 80) ** 0.5, 90: 0.5 / 3**0.5}),
        (Schedule("linear", "2 epochs"), {4: 0.5, 8: 1.0}),
    ],
    ids=lambda x: getattr(x, "shape", ""),
)
def test_schedules(options, expected):
    found = make_schedule(options, steps=100, batch_size=16, examples=64)
    for step, factor in expected.items():
        np.testing.assert_allclose(found(step), factor, atol=1e-6)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ((("vision_model/.*", 1.0),), "must match every parameter, got no rule for text_model/b; end the rules with"),
        ((("encoder/.*", 1.0), (".*", 1.0)), r"optimizer.rates: 'encoder/.\*' matches no parameter"),
        (((".*[", 1.0),), "optimizer.rates must be regular expressions, got"),
        (((".*", 0.0),), "must give some parameter a factor other than 0, got 0 for all; nothing would be trained"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules, said):
    with pytest.raises(ValueError, match=said):
        treatments(Optimizer(rates=rules, decays=((".*", 0.0),)), ["vision_model/a", "text_model/b"])


def test_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="must fit into the run, got 200"):
        make_schedule(Schedule(warmup="200 steps"), steps=100, batch_size=1, examples=1)
