import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax import sigmoid_loss


def embeddings(batch=13, width=24):
    random = np.random.RandomState(0)
    images, texts = random.standard_normal((2, batch, width))
    return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts)]


def truth(images, texts, scale, bias):
    """The definition in float64, with its gradients by hand."""
    logits = np.exp(scale) * images @ texts.T + bias
    signs = 2 * np.eye(len(images)) - 1
    value = np.logaddexp(0, -signs * logits).sum(1).mean()
    d = -signs / (1 + np.exp(signs * logits)) / len(images)
    t = np.exp(scale)
    return value, (t * d @ texts, t * d.T @ images, (d * (logits - bias)).sum(), d.sum())


@pytest.mark.parametrize(
    ("scale", "bias"), [(np.log(10), -10.0), (np.log(117.0), -12.9), (np.log(120), -17.0), (0.0, 0.0)]
)
def test_value_and_gradients_equal_float64(scale, bias):
    images, texts = embeddings()
    value, gradients = truth(images, texts, scale, bias)
    given = [jnp.asarray(x, jnp.float32) for x in (images, texts, scale, bias)]
    found, found_gradients = jax.jit(jax.value_and_grad(sigmoid_loss, argnums=(0, 1, 2, 3)))(*given)
    np.testing.assert_allclose(found, value, rtol=1e-6)
    for x, y in zip(found_gradients, gradients, strict=True):
        assert np.abs(x - y).max() <= 1e-5 * np.abs(y).max()


def test_scalars_may_come_as_in_a_checkpoint():
    images, texts = (jnp.asarray(x, jnp.float32) for x in embeddings())
    one = sigmoid_loss(images, texts, jnp.array([2.0]), jnp.array([-5.0]))
    two = sigmoid_loss(images, texts, jnp.array(2.0), jnp.array(-5.0))
    assert one == two and one.shape == ()


def test_extreme_logits_stay_finite():
    x = jnp.eye(4)
    value, gradients = jax.value_and_grad(sigmoid_loss, argnums=(0, 2))(x, -x, jnp.array(9.0), jnp.array(0.0))
    assert jnp.isfinite(value) and all(jnp.isfinite(g).all() for g in gradients)


def test_unmatched_rows_are_refused():
    with pytest.raises(ValueError, match="3 images and 2 texts"):
        from siglip_jax.losses.sigmoid import sigmoid_loss_of_logits

        sigmoid_loss_of_logits(jnp.zeros((3, 2)))
