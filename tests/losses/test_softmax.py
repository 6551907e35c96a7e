import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax import make_mesh
from siglip_jax.losses import softmax_loss
from tests.support.float64_loss import check, embeddings


def truth(images, texts, scale):
    """Cross-entropy both ways in float64, with gradients by hand."""
    n, t = len(images), np.exp(scale)
    similarity = images @ texts.T
    rows, columns = (np.exp(t * similarity) / np.exp(t * similarity).sum(axis, keepdims=True) for axis in (1, 0))
    value = -(np.log(np.diag(rows)) + np.log(np.diag(columns))).mean() / 2
    d = (rows + columns - 2 * np.eye(n)) / (2 * n)
    return value, (t * d @ texts, t * d.T @ images, (d * t * similarity).sum())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"block_size": 1}, {"block_size": 5}, {"mesh": 8, "block_size": "auto"}, {"mesh": 8, "block_size": 2}],
    ids=str,
)
def test_value_and_gradients_equal_float64(options):
    images, texts = embeddings(24, alike=0.3)
    if "mesh" in options:
        options = options | {"mesh": make_mesh(data=4, fsdp=2), "axis": ("data", "fsdp")}
    given = [jnp.asarray(x, jnp.float32) for x in (images, texts, np.log(20), -10.0)]
    loss = functools.partial(softmax_loss, **options)
    value, (*gradients, of_bias) = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(*given)
    check((value, gradients), truth(images, texts, float(given[2])), names=("images", "texts", "scale"))
    assert abs(of_bias) < 1e-6


def test_mistakes_are_refused():
    images, texts = (jnp.asarray(x, jnp.float32) for x in embeddings(12))
    with pytest.raises(ValueError, match="multiples of the 8 devices along data, got 12 images and 12 texts"):
        softmax_loss(images, texts, jnp.array(1.0), jnp.array(0.0), mesh=make_mesh())
    with pytest.raises(ValueError, match="got 12 images and 9 texts"):
        softmax_loss(images, texts[:9], jnp.array(1.0), jnp.array(0.0))
