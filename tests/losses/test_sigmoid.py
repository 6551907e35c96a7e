import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax import sigmoid_loss
from siglip_jax.losses.sigmoid import sigmoid_loss_of_logits
from siglip_jax.losses.tiles import make_pairs, sum_over_pairs
from tests.support.float64_loss import TEMPERATURES, check, embeddings, truth

EVERY = (0, 1, 2, 3)
BLOCKS = [None, 1, 4, 7, 13, 100, "auto"]  # 13 rows: dividing and not, larger and smaller


def arrays(*values):
    return [jnp.asarray(x, jnp.float32) for x in values]


@pytest.mark.slow
@pytest.mark.parametrize("block_size", BLOCKS)
def test_value_and_gradients_equal_float64(block_size):
    loss = functools.partial(sigmoid_loss, block_size=block_size)
    compiled = jax.jit(jax.value_and_grad(loss, EVERY))
    for alike, (scale, bias) in itertools.product([0.0, 0.95], TEMPERATURES):
        images, texts = embeddings(alike=alike)
        check(compiled(*arrays(images, texts, scale, bias)), truth(images, texts, scale, bias))


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 512])
def test_a_larger_batch_keeps_its_digits(block_size):
    images, texts = embeddings(1500, width=32, alike=0.5)
    loss = functools.partial(sigmoid_loss, block_size=block_size)
    found = jax.jit(jax.value_and_grad(loss, EVERY))(*arrays(images, texts, np.log(10), -10.0))
    check(found, truth(images, texts, np.log(10), -10.0))


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 3])
def test_well_matched_pairs_keep_their_digits(block_size):
    """Where a matching pair is certain its loss is tiny: 1 - sigmoid and softplus - x would have lost it."""
    images = texts = jnp.eye(5)
    scale, bias = jnp.log(jnp.array(34.0)), jnp.array(-17.0)

    def loss(scale, bias):
        return sigmoid_loss(images, texts, scale, bias, block_size=block_size)

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(scale, bias)
    expected, (_, _, *slopes) = truth(np.eye(5), np.eye(5), scale, bias)
    np.testing.assert_allclose(value, expected, rtol=1e-5)  # 17 of the logit 34 - 17 is rounded at 2e-6
    np.testing.assert_allclose(gradients[0], slopes[0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(  # tiles are checked above; here those that divide one side or none, or are larger than one
    ("images", "texts", "block_size"),
    [(13, 13, None), (13, 13, 4), (6, 15, None), (6, 15, 1), (6, 15, 7), (6, 15, "auto"), (15, 6, 5), (15, 6, 7)]
    + [(1, 9, None), (1, 9, 4)],
)
def test_pairs_that_share_a_group_match(images, texts, block_size):
    one, two = embeddings(images, texts)
    random = np.random.RandomState(1)
    groups = random.randint(0, 5, images), random.randint(0, 6, texts)  # some match several, some none
    given_groups = {"image_groups": jnp.asarray(groups[0]), "text_groups": jnp.asarray(groups[1])}
    loss = functools.partial(sigmoid_loss, **given_groups, block_size=block_size)
    found = jax.jit(jax.value_and_grad(loss, EVERY))(*arrays(one, two, np.log(20), -6.0))
    brute = sum(
        np.logaddexp(0, -(1 if groups[0][i] == groups[1][j] else -1) * (20 * one[i] @ two[j] - 6))
        for i in range(images)
        for j in range(texts)
    )
    expected = truth(one, two, np.log(20), -6.0, groups[0][:, None] == groups[1])
    np.testing.assert_allclose(expected[0], brute / images, rtol=1e-6)
    check(found, expected)


@pytest.mark.slow
def test_unique_groups_are_the_plain_loss():
    given = arrays(*embeddings(), np.log(10), -10.0)
    ids = jnp.asarray(np.random.RandomState(0).permutation(13))
    loss = jax.jit(sigmoid_loss, static_argnames="block_size")
    for block_size in (None, 5):
        plain = loss(*given, block_size=block_size)
        assert loss(*given, block_size=block_size, image_groups=ids, text_groups=ids) == plain


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 5])
def test_bfloat16_embeddings_are_summed_in_float32(block_size):
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in embeddings(64, width=32)]
    given = *rounded, *arrays(np.log(10), -10.0)
    loss = functools.partial(sigmoid_loss, block_size=block_size)
    value, gradients = jax.jit(jax.value_and_grad(loss, EVERY))(*given)
    exact = [np.asarray(x, np.float64) for x in rounded]
    expected, true_gradients = truth(*exact, np.log(10), -10.0)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for x, y, bound in zip(gradients, true_gradients, (2**-7, 2**-7, 1e-5, 1e-5), strict=True):
        assert np.abs(np.asarray(x, np.float64) - y).max() <= bound * np.abs(y).max()
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]


@pytest.mark.slow
def test_types_may_differ():
    images, texts = embeddings()
    mixed = jnp.asarray(images, jnp.bfloat16), jnp.asarray(texts, jnp.float32), *arrays(1.0, -3.0)
    dense, blocked = (
        jax.jit(jax.value_and_grad(lambda *a, b=b: sigmoid_loss(*a, block_size=b), EVERY))(*mixed) for b in (None, 4)
    )
    check(blocked, (dense[0], [np.asarray(g, np.float64) for g in dense[1]]))
    assert [g.dtype for g in blocked[1]] == [x.dtype for x in mixed]


@pytest.mark.slow
def test_scalars_may_come_as_in_a_checkpoint():
    images, texts = arrays(*embeddings())
    for block_size in (None, 4):
        loss = functools.partial(sigmoid_loss, block_size=block_size)
        one, two = (jax.jit(loss)(images, texts, jnp.full(shape, 2.0), jnp.full(shape, -5.0)) for shape in ((1,), ()))
        assert one == two and one.shape == ()
        slope = jax.eval_shape(jax.grad(loss, 2), images, texts, *[jnp.array([2.0])] * 2)
        assert slope.shape == (1,)


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 3])
def test_extreme_logits_stay_finite(block_size):
    x = jnp.eye(4)

    def loss(images, scale):
        return sigmoid_loss(images, -x, scale, jnp.array(0.0), block_size=block_size)

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, jnp.array(9.0))
    assert jnp.isfinite(value) and all(jnp.isfinite(g).all() for g in gradients)


@pytest.mark.slow
def test_second_derivatives_of_the_blocked_loss_are_those_of_the_dense():
    images, texts, scale, bias = arrays(*embeddings(6, width=4), 1.0, -3.0)

    def hessian(block_size):
        def loss(images, scale):
            return sigmoid_loss(images, texts, scale, bias, block_size=block_size)

        return jax.jit(jax.hessian(loss, (0, 1)))(images, scale)

    for x, y in zip(jax.tree.leaves(hessian(4)), jax.tree.leaves(hessian(None)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * np.abs(y).max())
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda s: sigmoid_loss(images, texts, s, bias, block_size=4), (scale,), (scale,))


def test_the_blocked_loss_never_holds_all_pairs():
    """At B = 32,768, E = 768 in float32 the matrix of logits alone would be 4 GiB."""
    x, one = jax.ShapeDtypeStruct((32768, 768), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    loss = functools.partial(sigmoid_loss, block_size="auto")
    compiled = jax.jit(jax.value_and_grad(loss, EVERY)).lower(x, x, one, one).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 350 * 2**20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_embeds": np.zeros((2, 4))}, "got 3 images and 2 texts.*pass image_groups"),
        ({"text_embeds": np.zeros((3, 5))}, r"got \(3, 4\) and \(3, 5\)"),
        ({"image_embeds": np.zeros(4)}, r"got \(4,\) and \(3, 4\)"),
        ({"image_embeds": np.zeros((0, 4)), "text_embeds": np.zeros((0, 4))}, "at least one"),
        ({"image_groups": np.arange(3)}, "must be given together, got only image_groups"),
        ({"image_groups": np.arange(4), "text_groups": np.arange(3)}, r"each of the 3 images, got shape \(4,\)"),
        ({"image_groups": np.arange(3), "text_groups": np.zeros(3)}, "texts, got shape .* of float32"),
        ({"block_size": 0}, "at least 1, got 0"),
        ({"block_size": "large"}, "got 'large'"),
        ({"block_size": True}, "got True"),
    ],
)
def test_mistakes_are_refused(change, message):
    given = {"image_embeds": np.zeros((3, 4)), "text_embeds": np.zeros((3, 4)), "logit_scale": 0.0, "logit_bias": 0.0}
    given |= {"image_groups": None, "text_groups": None} | change
    block_size = given.pop("block_size", 2)
    with pytest.raises(ValueError, match=message):
        sum_over_pairs(make_pairs(**given), block_size)


def test_logits_that_match_by_row_must_be_square():
    with pytest.raises(ValueError, match="3 images and 2 texts"):
        sigmoid_loss_of_logits(jnp.zeros((3, 2)))
