import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from siglip_jax import make_mesh
from siglip_jax.losses import distillation_loss
from siglip_jax.losses.distillation import distillation_losses, update_center, views_of
from tests.support.float64_loss import check

TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.04}


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def example(n=8, views=3, prototypes=19, globals=None, scale=1.0, seed=0):
    """Returns logits of student and teacher and a centre, representable in float32."""
    random = np.random.RandomState(seed)
    shapes = (n, views, prototypes), (n, *([globals] if globals else []), prototypes), (prototypes,)
    return [(scale * random.uniform(-1, 1, shape)).astype(np.float32).astype(np.float64) for shape in shapes]


def truth(student, teacher, center, student_temperature=0.1, teacher_temperature=0.04):
    """Returns the loss of each example and the gradient of the sum by the student, with all pairs of views in loops."""
    teacher = teacher[:, None] if teacher.ndim == 2 else teacher
    n, views, _ = student.shape
    losses, slopes = np.zeros(n), np.zeros(student.shape)
    pairs = views * teacher.shape[1]
    for i, v, g in np.ndindex(n, views, teacher.shape[1]):
        target = softmax((teacher[i, g] - center) / teacher_temperature)
        z = (student[i, v] - student[i, v].max()) / student_temperature
        losses[i] += (target * (np.log(np.exp(z).sum()) - z)).sum() / pairs
        slopes[i, v] += (softmax(z) - target) / student_temperature / pairs
    return losses, slopes


def given(arrays, dtype=jnp.float32):
    return [jnp.asarray(x, dtype) for x in arrays]


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("globals", [None, 1, 2])
def test_value_and_gradients_equal_float64(globals, devices):
    for scale in (0.3, 1.0):
        arrays = example(globals=globals, scale=scale)
        losses, slopes = truth(*arrays)
        inputs = given(arrays)
        if devices > 1:
            over = NamedSharding(make_mesh(), PartitionSpec("data"))
            inputs[:2] = jax.device_put(inputs[:2], over)
        value, gradients = jax.jit(jax.value_and_grad(distillation_loss, (0, 1, 2)))(*inputs)
        check((value, gradients[:1]), (losses.mean(), [slopes / len(losses)]), ["student"])
        assert not gradients[1].any() and not gradients[2].any()
        np.testing.assert_allclose(jax.jit(distillation_losses)(*inputs), losses, rtol=1e-6)


@pytest.mark.parametrize("temperatures", [(0.1, 0.07), (1.0, 0.5)])
def test_temperatures_may_be_traced(temperatures):
    arrays = example()
    loss = jax.jit(lambda *x: distillation_losses(*x[:3], student_temperature=x[3], teacher_temperature=x[4]))
    found = loss(*given(arrays), *map(jnp.float32, temperatures))
    np.testing.assert_allclose(found, truth(*arrays, *temperatures)[0], rtol=1e-5)


def test_extreme_logits_stay_finite():
    arrays = example(scale=1e4)
    losses, slopes = truth(*arrays)
    found = jax.jit(jax.value_and_grad(distillation_loss))(*given(arrays))
    check((found[0], found[1:]), (losses.mean(), [slopes / len(losses)]), ["student"])
    assert np.isfinite(found[1]).all()


def test_bfloat16_logits_are_summed_in_float32():
    arrays = given(example(prototypes=4096, scale=0.2), jnp.bfloat16)
    value, slope = jax.jit(jax.value_and_grad(distillation_loss))(*arrays)
    losses, slopes = truth(*(np.asarray(x, np.float64) for x in arrays))
    assert value.dtype == jnp.float32 and slope.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, losses.mean(), rtol=1e-6)
    assert np.abs(np.asarray(slope, np.float64) * 8 - slopes).max() <= 2**-7 * np.abs(slopes).max()


def test_the_backward_pass_keeps_the_logits_alone():
    student, teacher, center = given(example(prototypes=1000))
    _, pull_back = jax.vjp(lambda x: distillation_losses(x, teacher, center), student)
    kept = [x.shape for x in jax.tree.leaves(pull_back) if x.size >= student.size]
    assert kept == [student.shape]


def test_the_center_is_a_moving_average():
    center = update_center(jnp.array([1.0, -2.0]), jnp.array([3.0, 0.0], jnp.bfloat16))
    np.testing.assert_allclose(center, [1.2, -1.8], rtol=1e-6)
    assert center.dtype == jnp.float32
    np.testing.assert_allclose(update_center(center, jnp.array([3.0, 0.0]), 0.5), [2.1, -0.9], rtol=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "center"),
    [((4, 2, 5), (4, 6), (5,)), ((4, 2, 5), (3, 5), (5,)), ((4, 2, 5), (4, 5), (6,)), ((4, 5), (4, 5), (5,))]
    + [((4, 0, 5), (4, 5), (5,)), ((4, 2, 5), (4, 2, 2, 5), (5,))],
)
def test_shapes_that_do_not_fit_are_refused(student, teacher, center):
    with pytest.raises(ValueError, match="student, teacher and center must be .* got"):
        views_of(*(jnp.zeros(shape) for shape in (teacher, student, center)))


@pytest.mark.slow
def test_a_linear_model_learns_what_its_teacher_knows():
    """Views hide a part of the input that the teacher does not use: the loss falls to the teacher's uncertainty."""
    random = np.random.RandomState(0)
    n, views, width, prototypes = 256, 8, 6, 10
    kernel = random.standard_normal((width, prototypes)) * 0.08
    seen = random.standard_normal((n, width))
    teacher = seen @ kernel
    center = teacher.mean(0)
    noise = random.standard_normal((n, views, 4))
    inputs = jnp.asarray(np.concatenate([np.repeat(seen[:, None], views, 1), noise], -1), jnp.float32)
    fixed = given((teacher, center))

    def loss(params):
        return distillation_loss(inputs @ params["kernel"] + params["bias"][None, None], *fixed)

    @functools.partial(jax.jit)
    def learn(params):
        def step(params, _):
            value, slopes = jax.value_and_grad(loss)(params)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, slopes), value

        return jax.lax.scan(step, params, length=400)

    params, values = learn({"kernel": jnp.zeros((width + 4, prototypes)), "bias": jnp.zeros(prototypes)})
    right = softmax((teacher - center) / 0.04)
    uncertainty = -(right * np.log(right)).sum(1).mean()
    np.testing.assert_allclose(values[0], np.log(prototypes), rtol=1e-5)
    np.testing.assert_allclose(values[-1], uncertainty, rtol=1e-3)
    # The softmax of student / 0.1 is that of (teacher - centre) / 0.04 if the kernel is 2.5 times as large.
    learned = params["kernel"] - params["kernel"].mean(1, keepdims=True)
    np.testing.assert_allclose(learned[:width], 2.5 * (kernel - kernel.mean(1, keepdims=True)), atol=0.01)
    np.testing.assert_allclose(learned[width:], 0, atol=0.01)
