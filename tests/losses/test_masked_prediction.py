import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from siglip_jax import make_mesh
from siglip_jax.losses import masked_prediction_loss
from siglip_jax.losses.masked_prediction import check_shapes, masked_prediction_losses, random_patch_mask
from tests.support.float64_loss import check


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def example(n=8, patches=6, prototypes=13, scale=1.0, seed=0):
    """Returns logits of student and teacher, a centre and a mask; the third image has no masked patch."""
    random = np.random.RandomState(seed)
    shapes = (n, patches, prototypes), (n, patches, prototypes), (prototypes,)
    arrays = [(scale * random.uniform(-1, 1, shape)).astype(np.float32).astype(np.float64) for shape in shapes]
    mask = random.uniform(size=(n, patches)) < 0.5
    mask[0], mask[2] = True, False
    return *arrays, mask


def truth(student, teacher, center, mask, student_temperature=0.1, teacher_temperature=0.04):
    """Returns the loss of each image and the gradient of their sum by the student."""
    losses, slopes = np.zeros(len(student)), np.zeros(student.shape)
    for i, p in np.argwhere(mask):
        target = softmax((teacher[i, p] - center) / teacher_temperature)
        z = (student[i, p] - student[i, p].max()) / student_temperature
        losses[i] += (target * (np.log(np.exp(z).sum()) - z)).sum() / mask[i].sum()
        slopes[i, p] = (softmax(z) - target) / student_temperature / mask[i].sum()
    return losses, slopes


def given(student, teacher, center, mask, dtype=jnp.float32):
    return *(jnp.asarray(x, dtype) for x in (student, teacher, center)), jnp.asarray(mask)


@pytest.mark.parametrize("devices", [1, 8])
def test_value_and_gradients_equal_float64(devices):
    for scale in (0.3, 1.0, 1e4):
        arrays = example(scale=scale)
        losses, slopes = truth(*arrays)
        student, teacher, center, mask = given(*arrays)
        if devices > 1:
            over = NamedSharding(make_mesh(), PartitionSpec("data"))
            student, teacher, mask = jax.device_put((student, teacher, mask), over)
        inputs = student, teacher, center, mask
        value, gradients = jax.jit(jax.value_and_grad(masked_prediction_loss, (0, 1, 2)))(*inputs)
        check((value, gradients[:1]), (losses.mean(), [slopes / len(losses)]), ["student"])
        assert not gradients[1].any() and not gradients[2].any()
        found = jax.jit(masked_prediction_losses)(*inputs)
        np.testing.assert_allclose(found, losses, rtol=1e-6)
        assert found[2] == 0


def test_what_was_not_masked_does_not_matter():
    student, teacher, center, mask = given(*example())
    wrong = jnp.where(mask[..., None], student, jnp.nan)
    loss = jax.jit(masked_prediction_loss)
    assert loss(wrong, teacher, center, mask) == loss(student, teacher, center, mask)
    assert loss(student, teacher, center, jnp.zeros_like(mask)) == 0


def test_bfloat16_logits_are_summed_in_float32():
    student, teacher, center, mask = given(*example(prototypes=2000, scale=0.2), dtype=jnp.bfloat16)
    value, slope = jax.jit(jax.value_and_grad(masked_prediction_loss))(student, teacher, center, mask)
    exact = (np.asarray(x, np.float64) for x in (student, teacher, center))
    losses, slopes = truth(*exact, np.asarray(mask))
    assert value.dtype == jnp.float32 and slope.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, losses.mean(), rtol=1e-6)
    assert np.abs(np.asarray(slope, np.float64) * 8 - slopes).max() <= 2**-7 * np.abs(slopes).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": (2, 3, 5)}, r"student and teacher must be .* got \(2, 3, 4\), \(2, 3, 5\) and \(2, 3\)"),
        ({"student": (2, 4), "teacher": (2, 4)}, "student and teacher must be"),
        ({"mask": (2, 4)}, "mask .images, patches., got"),
        ({"center": (3,)}, r"center must be a number for each prototype, \(4,\), got \(3,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    shapes = {"student": (2, 3, 4), "teacher": (2, 3, 4), "center": (4,), "mask": (2, 3)} | change
    with pytest.raises(ValueError, match=message):
        check_shapes(**{name: jnp.zeros(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize(
    ("rows", "columns", "share", "count"),
    [(4, 5, 0.5, 10), (3, 3, 0.5, 4), (7, 3, 0.3, 6), (2, 2, 0.0, 0), (2, 3, 1.0, 6)],
)
def test_masks_have_an_exact_number_of_patches(rows, columns, share, count):
    mask = random_patch_mask(jax.random.key(0), 5, rows, columns, share)
    assert mask.shape == (5, rows, columns) and mask.dtype == bool
    np.testing.assert_array_equal(mask.sum((1, 2)), count)


def test_every_patch_is_masked_equally_often_and_images_differ():
    mask = np.asarray(random_patch_mask(jax.random.key(0), 2000, 3, 4, 0.25))
    np.testing.assert_allclose(mask.mean(0), 0.25, atol=0.05)
    both = (mask[:, 0, 0] & mask[:, 2, 3]).mean()  # 3 of 12 without replacement
    np.testing.assert_allclose(both, 3 / 12 * 2 / 11, atol=0.02)
    other = np.asarray(random_patch_mask(jax.random.key(1), 2000, 3, 4, 0.25))
    assert (mask != other).any((1, 2)).mean() > 0.9


def test_a_share_beyond_one_is_refused():
    with pytest.raises(ValueError, match="share must be from 0 to 1, got 1.5"):
        random_patch_mask(jax.random.key(0), 1, 2, 2, 1.5)


@pytest.mark.slow
def test_a_linear_model_learns_hidden_patches_from_the_others():
    """A hidden patch is the sum of its neighbours' contents: the loss falls to the teacher's uncertainty."""
    random = np.random.RandomState(0)
    n, width, prototypes = 512, 4, 9
    ends = random.standard_normal((n, 2, width))
    content = np.stack([ends[:, 0], ends.sum(1), ends[:, 1]], axis=1)  # three patches in a row
    kernel = random.standard_normal((width, prototypes)) * 0.06
    mask = np.tile([False, True, False], (n, 1))
    shown = np.where(mask[..., None], 0.0, content).reshape(n, -1)  # a mask token of zeros
    teacher, center = content @ kernel, (content @ kernel).mean((0, 1))
    fixed, inputs = given(teacher, teacher, center, mask)[1:], jnp.asarray(shown, jnp.float32)

    def loss(params):
        student = inputs @ params["kernel"] + params["bias"][None]
        return masked_prediction_loss(student.reshape(n, 3, prototypes), *fixed)

    @jax.jit
    def learn(params):
        def step(params, _):
            value, slopes = jax.value_and_grad(loss)(params)
            return jax.tree.map(lambda p, g: p - 0.05 * g, params, slopes), value

        return jax.lax.scan(step, params, length=400)

    params, values = learn({"kernel": jnp.zeros((3 * width, 3 * prototypes)), "bias": jnp.zeros(3 * prototypes)})
    right = softmax((teacher[:, 1] - center) / 0.04)
    uncertainty = -(right * np.log(right)).sum(1).mean()
    np.testing.assert_allclose(values[0], np.log(prototypes), rtol=1e-5)
    np.testing.assert_allclose(values[-1], uncertainty, rtol=1e-3)
    learned = params["kernel"].reshape(3, width, 3, prototypes)
    learned = learned - learned.mean(3, keepdims=True)
    for patch, factor in enumerate((2.5, 0.0, 2.5)):  # 0.1 / 0.04
        expected = factor * (kernel - kernel.mean(1, keepdims=True))
        np.testing.assert_allclose(learned[patch, :, 1], expected, atol=0.01)
    assert not learned[:, :, ::2].any()  # what was not hidden is not learned
