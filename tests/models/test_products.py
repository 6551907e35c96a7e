"""Products of narrow types: value and gradients against float64, with and without instructions for bfloat16."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from siglip_jax.models import products
from siglip_jax.models.elementwise import ACTIVATION_FUNCTIONS
from tests.support.gelu import tanh_gelu


def arrays(dtype, *shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


@pytest.mark.slow
@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_float32_matmul(native, dtype, batch, monkeypatch):
    monkeypatch.setattr(products, "cpu_multiplies_bfloat16", lambda: native)
    x, y, w = arrays(dtype, (*batch, 5, 72), (*batch, 72, 7), (*batch, 5, 7))
    truth = [a.astype(np.float64) for a in (x, y, w)]

    def weighted(x, y):
        out = products.float32_matmul(x, y)
        assert out.dtype == jnp.float32
        return jnp.sum(out * jnp.asarray(w, jnp.float32)), out

    (_, out), found = jax.value_and_grad(weighted, (0, 1), has_aux=True)(jnp.asarray(x), jnp.asarray(y))
    expected = truth[0] @ truth[1], truth[2] @ truth[1].swapaxes(-1, -2), truth[0].swapaxes(-1, -2) @ truth[2]
    np.testing.assert_allclose(out, expected[0], atol=1e-6 * np.abs(expected[0]).max())
    for gradient, right in zip(found, expected[1:], strict=True):
        assert gradient.dtype == dtype
        one_rounding = float(ml_dtypes.finfo(dtype).eps) / 2 * (1 + 1e-3)
        np.testing.assert_allclose(np.asarray(gradient, np.float64), right, rtol=one_rounding, atol=1e-5)


def test_dense_layers_round_once_and_keep_their_parameters():
    (x,) = arrays(ml_dtypes.bfloat16, (2, 3, 40))
    layer = products.Dense(24, dtype=jnp.bfloat16, use_bias=False)
    params = layer.init(jax.random.key(0), jnp.asarray(x))["params"]
    kernel = np.asarray(params["kernel"])
    assert kernel.shape == (40, 24) and kernel.dtype == np.float32
    out = np.asarray(layer.apply({"params": params}, jnp.asarray(x)), np.float64)
    expected = x.astype(np.float64) @ kernel.astype(ml_dtypes.bfloat16).astype(np.float64)
    np.testing.assert_allclose(out, expected, rtol=2**-8 * (1 + 1e-3), atol=1e-5)


def test_a_layer_of_activated_inputs_and_its_gradients_equal_float64():
    x, kernel, bias, weights = arrays(np.float32, (2, 3, 52), (52, 24), (24,), (2, 3, 24))
    layer = products.Dense(24, activation=ACTIVATION_FUNCTIONS["gelu_pytorch_tanh"])

    def weighted(params, x):
        return jnp.sum(layer.apply({"params": params}, x) * weights)

    params = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    found, of_x = jax.grad(weighted, (0, 1))(params, jnp.asarray(x))
    x64, k64, w64 = (a.astype(np.float64) for a in (x, kernel, weights))
    out = layer.apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(out, tanh_gelu(x64) @ k64 + bias, atol=1e-5)
    slope = (tanh_gelu(x64 + 1e-5) - tanh_gelu(x64 - 1e-5)) / 2e-5
    of_kernel = np.einsum("abi,abo->io", tanh_gelu(x64), w64)
    for gradient, right in (
        (of_x, w64 @ k64.T * slope),
        (found["kernel"], of_kernel),
        (found["bias"], w64.sum((0, 1))),
    ):
        np.testing.assert_allclose(gradient, right, atol=1e-5 * np.abs(right).max())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_layer_of_activated_inputs_computes_what_two_steps_do_and_keeps_less(dtype):
    x, kernel = (jnp.asarray(a, dtype) for a in arrays(np.float32, (2, 3, 52), (52, 24)))
    activation = ACTIVATION_FUNCTIONS["gelu"]
    layer, plain = (
        products.Dense(24, dtype=dtype, use_bias=False, activation=activation),
        products.Dense(24, dtype=dtype, use_bias=False),
    )

    def one(x, kernel):
        return layer.apply({"params": {"kernel": kernel}}, x)

    def two(x, kernel):
        return plain.apply({"params": {"kernel": kernel}}, activation(x))

    for found, right in zip(*(jax.vjp(f, x, kernel)[1](jnp.ones((2, 3, 24), dtype)) for f in (one, two)), strict=True):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, right)
    np.testing.assert_array_equal(one(x, kernel), two(x, kernel))
    kept = jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(one, *a)[1], x, kernel))
    assert sorted(a.shape for a in kept) == [(2, 3, 52), (52, 24)]


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("flags\t\t: fpu avx2 avx512_bf16 avx512vl", True),
        ("flags\t\t: fpu avx2 avx512bw", False),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("", False),
    ],
)
def test_what_a_cpu_can_do_is_read_off_its_flags(text, has, tmp_path):
    (tmp_path / "cpuinfo").write_text(text)
    assert products.cpu_multiplies_bfloat16(tmp_path / "cpuinfo") is has
    assert products.cpu_multiplies_bfloat16(tmp_path / "missing") is False
