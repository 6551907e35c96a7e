import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from siglip_jax import make_mesh
from siglip_jax.losses import captioning_loss
from siglip_jax.losses.captioning import caption_weights, checked
from siglip_jax.planning.topology import open_topology
from tests.support.float64_loss import check

NAMES = ("states", "table", "weights")
EVERY = (0, 1, 3)


def example(examples=8, tokens=5, width=12, vocabulary=37, scale=1.0, seed=0):
    """Returns states, table, targets and weights, representable in float32."""
    random = np.random.RandomState(seed)
    states, table = random.standard_normal((examples, tokens, width)), random.standard_normal((vocabulary, width))
    targets = random.randint(0, vocabulary, (examples, tokens))
    weights = random.uniform(0, 1, (examples, tokens)) * (random.uniform(size=(examples, tokens)) < 0.8)
    arrays = [x.astype(np.float32).astype(np.float64) for x in (scale * states, table, weights)]
    return arrays[0], arrays[1], targets, arrays[2]


def truth(states, table, targets, weights):
    """Returns the value and the gradients of states, table and weights, by hand in float64."""
    logits = states @ table.T
    shifted = logits - logits.max(-1, keepdims=True)
    total = np.exp(shifted).sum(-1, keepdims=True)
    losses = np.log(total[..., 0]) - np.take_along_axis(shifted, targets[..., None], -1)[..., 0]
    slopes = (np.exp(shifted) / total - np.eye(len(table))[targets]) * weights[..., None]
    return (weights * losses).sum(), (slopes @ table, np.einsum("ntv,ntd->vd", slopes, states), losses)


def given(states, table, targets, weights):
    return (
        *(jnp.asarray(x, jnp.float32) for x in (states, table)),
        jnp.asarray(targets),
        jnp.asarray(weights, "float32"),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",  # 37 rows: blocks that divide them and do not, smaller and larger
    [{}, {"block_size": 1}, {"block_size": 8}, {"block_size": 36}, {"block_size": 100}, {"block_size": "auto"}]
    + [{"mesh": "data"}, {"mesh": "data", "block_size": 8}, {"mesh": ("data", "fsdp"), "block_size": "auto"}]
    + [{"mesh": ("data", "fsdp", "tensor"), "block_size": 9}],
    ids=str,
)
def test_value_and_gradients_equal_float64(options):
    if axis := options.get("mesh"):
        shape = {"data": 8} if axis == "data" else {"data": 2, "fsdp": 2, "tensor": 2}
        options = options | {"mesh": make_mesh(**shape), "axis": axis}
    loss = functools.partial(captioning_loss, **options)
    compiled, alone = jax.jit(jax.value_and_grad(loss, EVERY)), jax.jit(loss)
    for scale in (0.3, 4.0):
        arrays = example(scale=scale)
        expected = truth(*arrays)
        check(compiled(*given(*arrays)), expected, NAMES)
        np.testing.assert_allclose(alone(*given(*arrays)), expected[0], rtol=1e-6)


def test_without_weights_it_is_a_mean_over_tokens():
    states, table, targets, _ = example()
    expected, gradients = truth(states, table, targets, np.full(targets.shape, 1 / targets.size))
    loss = functools.partial(captioning_loss, block_size=16)
    found = jax.jit(jax.value_and_grad(loss, (0, 1)))(*given(states, table, targets, targets)[:3])
    check(found, (expected, gradients[:2]), NAMES[:2])


@pytest.mark.parametrize("block_size", [None, 16])
def test_extreme_logits_stay_finite(block_size):
    states, table, targets, weights = example(width=1, scale=0.0)
    states[:, ::2], states[:, 1::2] = 1e4, -1e4
    table = np.linspace(-1, 1, 37)[:, None].astype(np.float32).astype(np.float64)
    loss = functools.partial(captioning_loss, block_size=block_size)
    value, gradients = jax.jit(jax.value_and_grad(loss, EVERY))(*given(states, table, targets, weights))
    assert all(np.isfinite(g).all() for g in gradients)
    check((value, gradients), truth(states, table, targets, weights), NAMES)


@pytest.mark.parametrize("block_size", [None, 2])
def test_a_certain_token_keeps_its_digits(block_size):
    """exp(-20) is below the spacing of float32 at 1, where log(total) - logit would be 0."""
    states = jnp.array([[[20.0, 0.0, 0.0]]])
    loss = functools.partial(captioning_loss, block_size=block_size)
    value, slope = jax.value_and_grad(loss)(states, jnp.eye(3), jnp.array([[0]]))
    np.testing.assert_allclose(value, np.log1p(2 * np.exp(-20)), rtol=1e-6)
    np.testing.assert_allclose(slope[0, 0], np.array([-2, 1, 1]) * np.exp(-20), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"block_size": 16}, {"block_size": "auto", "mesh": 8}], ids=str)
def test_bfloat16_states_are_summed_in_float32(options):
    states, table, targets, weights = given(*example(16, 64, 32, 300, scale=0.3))
    states = states.astype(jnp.bfloat16)
    options = options | ({"mesh": make_mesh()} if "mesh" in options else {})
    loss = functools.partial(captioning_loss, **options)
    value, gradients = jax.jit(jax.value_and_grad(loss, EVERY))(states, table, targets, weights)
    rounded = table.astype(jnp.bfloat16)  # as in a dense layer, the products have the dtype of the states
    exact = [np.asarray(x, np.float64) for x in (states, rounded)]
    expected, true_gradients = truth(*exact, np.asarray(targets), np.asarray(weights, np.float64))
    assert value.dtype == jnp.float32 and [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32, jnp.float32]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for x, y, bound in zip(gradients, true_gradients, (2**-7, 2**-7, 1e-5), strict=True):
        assert np.abs(np.asarray(x, np.float64) - y).max() <= bound * np.abs(y).max()


@pytest.mark.slow
def test_second_derivatives_of_blocks_are_those_of_all_logits():
    states, table, targets, weights = given(*example(2, 2, 3, 5))

    def hessian(block_size):
        loss = functools.partial(captioning_loss, targets=targets, weights=weights, block_size=block_size)
        return jax.jit(jax.jacrev(jax.grad(loss, (0, 1)), (0, 1)))(states, table)

    logits = np.asarray(states @ table.T, np.float64)
    likely = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    curve = np.einsum("ntv,vw->ntvw", likely, np.eye(5)) - likely[..., None] * likely[..., None, :]
    of_states = np.einsum("nt,ntvw,vd,we->ntde", weights, curve, table, table)
    found = hessian(2)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(hessian(None)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    for n, t in np.ndindex(2, 2):
        np.testing.assert_allclose(found[0][0][n, t, :, n, t], of_states[n, t], rtol=1e-4, atol=1e-6)


def test_a_target_that_does_not_count_may_be_none():
    states, table, targets, weights = example()
    wrong = np.where(weights == 0, -100, targets)
    check(
        jax.jit(jax.value_and_grad(captioning_loss, (0, 1)))(*given(states, table, wrong, weights)),
        (lambda value, of: (value, of[:2]))(*truth(states, table, targets, weights)),
        NAMES[:2],
    )
    wrong[weights > 0] = 37
    assert np.isnan(jax.jit(captioning_loss)(*given(states, table, wrong, weights)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.full((2, 3), 5)}, "targets must be 0 to 4, got 5; give tokens that do not count weight 0"),
        ({"targets": np.zeros((2, 4), int)}, r"targets must be an integer for each state, \(2, 3\), got \(2, 4\)"),
        ({"targets": np.zeros((2, 3))}, "got .* of float32"),
        ({"table": np.zeros((5, 3))}, r"one width.*got \(2, 3, 4\) and \(5, 3\)"),
        ({"table": np.zeros((0, 4))}, "at least one of each"),
        ({"weights": np.zeros(2)}, r"weights must be a number for each target, \(2, 3\), got \(2,\)"),
    ],
)
def test_mistakes_are_refused(change, message):
    right = {"states": np.zeros((2, 3, 4)), "table": np.zeros((5, 4)), "targets": np.zeros((2, 3), int)}
    with pytest.raises(ValueError, match=message):
        checked(**right | {"weights": None} | change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "block_size must be .* at least 1, got 0"),
        ({"mesh": "data"}, "examples must be multiples of the 8 devices along data, got 2 examples; drop or repeat"),
        ({"mesh": "width"}, "axis must be one of the mesh axes data, fsdp, tensor, got width"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    if axis := options.get("mesh"):
        options = {"mesh": make_mesh(), "axis": axis}
    with pytest.raises(ValueError, match=message):
        captioning_loss(jnp.zeros((2, 3, 4)), jnp.zeros((5, 4)), jnp.zeros((2, 3), jnp.int32), **options)


def shapes(vocabulary, examples=64, tokens=64, width=128, dtype="float32", **shardings):
    """Returns descriptions of the arguments, the states in a dtype."""
    sharding, whole = shardings.get("sharded"), shardings.get("whole")
    return (
        jax.ShapeDtypeStruct((examples, tokens, width), dtype, sharding=sharding),
        jax.ShapeDtypeStruct((vocabulary, width), "float32", sharding=whole),
        jax.ShapeDtypeStruct((examples, tokens), "int32", sharding=sharding),
        jax.ShapeDtypeStruct((examples, tokens), "float32", sharding=sharding),
    )


def compiled(arguments, **options):
    loss = functools.partial(captioning_loss, **options)
    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile()


def temporaries(program):
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_does_not_grow_with_the_vocabulary():
    """At (1,024 x 64 tokens, 256,000 rows) all logits would be 62.5 GiB; here the vocabulary grows fourfold."""
    small, large = (temporaries(compiled(shapes(rows), block_size="auto")) for rows in (64_000, 256_000))
    dense = temporaries(compiled(shapes(64_000)))
    assert dense >= 64 * 64 * 64_000 * 4
    assert small <= dense / 20 and large <= 1.01 * small


@pytest.mark.slow
def test_the_tpu_compiler_agrees():
    """The table is not rounded as a whole; its gradient is summed over the devices once; nothing is gathered."""
    devices = np.array(open_topology("v5e:2x2").devices)
    mesh = jax.sharding.Mesh(devices, ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = {"sharded": NamedSharding(mesh, PartitionSpec("data")), "whole": NamedSharding(mesh, PartitionSpec())}
    found = {}
    for rows in (16_384, 65_536):
        program = compiled(shapes(rows, 256, 64, 128, "bfloat16", **placed), mesh=mesh, block_size=1024)
        found[rows] = temporaries(program)
        text = program.as_text()
        assert not re.search(r" (all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\(", text)
        sums = re.findall(r"= (.*) all-reduce(?:-start)?\(", text)
        assert sum(f"f32[{rows},128]" in line for line in sums) == 1 and len(sums) <= 2  # the other is of the value
    of_all_logits = 256 * 64 // 4 * 65_536 * 4
    assert found[65_536] <= of_all_logits / 20
    assert found[65_536] <= 1.01 * found[16_384]


def test_weights_of_captions():
    ids = jnp.array([[5, 6, 1, 1, 1], [5, 6, 7, 8, 9], [1, 0, 0, 0, 0], [3, 4, 5, 6, 1], [4, 1, 6, 1, 0]])
    third, fifth, half = 1 / 3, 1 / 5, 1 / 2
    expected = [[third] * 3 + [0] * 2, [fifth] * 5, [1, 0, 0, 0, 0], [fifth] * 5, [half, half, 0, 0, 0]]
    found = jax.jit(caption_weights, static_argnums=1)(ids, 1)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.slow
def test_a_linear_model_learns_the_distribution_of_tokens():
    """Each of six contexts has a known distribution of tokens: the loss falls to its entropy, and the model to it."""
    random = np.random.RandomState(0)
    contexts, vocabulary, width = 6, 11, 16
    logits = 2 * random.standard_normal((contexts, vocabulary))
    right = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = jnp.broadcast_to(jnp.arange(vocabulary)[None], right.shape)
    weights = jnp.asarray(right / contexts, jnp.float32)

    def loss(params):
        states = jnp.broadcast_to(params["states"][:, None], (contexts, vocabulary, width))
        return captioning_loss(states, params["table"], targets, weights, block_size=4)

    made = random.standard_normal((contexts + vocabulary, width)).astype(np.float32) / 4
    params = {"states": jnp.asarray(made[:contexts]), "table": jnp.asarray(made[contexts:])}

    @jax.jit
    def learn(params):
        def step(params, _):
            value, slopes = jax.value_and_grad(loss)(params)
            return jax.tree.map(lambda p, g: p - 2.0 * g, params, slopes), value

        return jax.lax.scan(step, params, length=600)

    params, values = learn(params)
    entropy = -(right * np.log(right)).sum() / contexts
    assert values[0] > entropy + 0.5
    np.testing.assert_allclose(values[-1], entropy, atol=2e-3)
    np.testing.assert_allclose(jax.nn.softmax(params["states"] @ params["table"].T), right, atol=0.02)
