"""Attention: `xla` against float64, forward and backward, and which implementation a platform gets."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax.models import attention
from siglip_jax.models import pallas_attention as pallas
from siglip_jax.models.attention import describe_attention, mask_to_bias
from siglip_jax.models.xla_attention import xla_attention

SHAPES = {"odd": (2, 77, 3, 72), "one query": (3, 29, 2, 8), "small": (2, 16, 5, 24)}  # batch, tokens, heads, width


def arrays(name, dtype):
    batch, tokens, heads, width = SHAPES[name]
    rng = np.random.default_rng(0)
    queries = 1 if name == "one query" else tokens
    shapes = [(batch, queries, heads * width), *[(batch, tokens, heads * width)] * 2, (batch, queries, heads * width)]
    return heads, [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def float64(heads, query, key, value, cotangent, bias):
    """Returns the output and the gradients by queries, keys, values and bias."""

    def split(x):
        x = np.asarray(x, np.float64)
        return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

    def merge(x):
        x = x.swapaxes(1, 2)
        return x.reshape(*x.shape[:2], -1)

    q, k, v, g = (split(x) for x in (query, key, value, cotangent))
    factor = 1 / np.sqrt(q.shape[-1])
    scores = q @ k.swapaxes(-1, -2) * factor + (0 if bias is None else np.asarray(bias, np.float64))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    of_weights = g @ v.swapaxes(-1, -2)
    of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdims=True))
    of_q, of_k, of_v = of_scores @ k * factor, of_scores.swapaxes(-1, -2) @ q * factor, weights.swapaxes(-1, -2) @ g
    return merge(weights @ v), merge(of_q), merge(of_k), merge(of_v), of_scores


def of_tpu(*args, default, tpu=None, **platforms):
    """Stands in for `jax.lax.platform_dependent`: what is lowered for a TPU runs here."""
    return (tpu or default)(*args)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_attention_and_its_gradients_equal_float64(platform, name, masked, dtype, tolerance, monkeypatch):
    if platform == "tpu":
        monkeypatch.setattr(jax.lax, "platform_dependent", of_tpu)
    heads, (query, key, value, cotangent) = arrays(name, dtype)
    mask = np.arange(key.shape[1])[None] < np.array([[9], [key.shape[1]], [5]])[: len(key)] if masked else None
    bias = mask_to_bias(mask)
    out, pull_back = jax.vjp(lambda *x: xla_attention(heads, *x, bias), query, key, value)
    expected = float64(heads, query, key, value, cotangent, bias)
    for found, right in zip((out, *pull_back(cotangent)), expected, strict=False):
        assert found.dtype == dtype
        np.testing.assert_allclose(np.asarray(found, np.float64), right, atol=tolerance * np.abs(right).max())


def test_a_bias_has_a_gradient():
    heads, (query, key, value, cotangent) = arrays("small", jnp.float32)
    bias = jnp.asarray(np.random.default_rng(1).normal(size=(1, heads, 16, 16)), jnp.float32)
    _, pull_back = jax.vjp(lambda bias: xla_attention(heads, query, key, value, bias), bias)
    expected = float64(heads, query, key, value, cotangent, bias)[-1].sum(0, keepdims=True)
    np.testing.assert_allclose(pull_back(cotangent)[0], expected, atol=1e-5 * np.abs(expected).max())


def test_a_row_without_keys_stays_finite_with_finite_gradients():
    heads, (query, key, value, _) = arrays("small", jnp.bfloat16)
    bias = mask_to_bias(np.zeros((2, 16), bool))
    out, pull_back = jax.vjp(lambda *x: xla_attention(heads, *x, bias), query, key, value)
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in (out, *pull_back(out)))
    np.testing.assert_allclose(np.asarray(out[0, 0], np.float32), np.asarray(value[0], np.float32).mean(0), atol=1e-2)


@pytest.mark.parametrize(
    ("name", "platform", "dtype", "width", "words"),
    [
        ("auto", "gpu", "bfloat16", 64, "cudnn"),
        ("auto", "gpu", "bfloat16", 60, "xla"),
        ("auto", "gpu", "float32", 64, "xla"),
        ("auto", "cpu", "bfloat16", 64, "xla"),
        ("xla", "gpu", "bfloat16", 64, "xla"),
        ("eager", "gpu", "bfloat16", 64, "eager"),
        ("cudnn", "gpu", "float16", 72, "cudnn"),
    ],
)
def test_the_implementation_is_described_for_a_platform(name, platform, dtype, width, words):
    assert describe_attention(name, dtype, width, platform).startswith(words)


@pytest.mark.parametrize(
    ("platform", "dtype", "words"),
    [("cpu", "bfloat16", "backend must be an NVIDIA GPU .*, got 'cpu'"), ("gpu", "float32", "dtype must be float16")],
)
def test_cudnn_is_refused_where_it_cannot_run(platform, dtype, words):
    with pytest.raises(ValueError, match=words):
        describe_attention("cudnn", dtype, 64, platform)


def test_a_gpu_gets_cudnn_where_it_runs_and_others_do_not(monkeypatch):
    """The fused kernel itself needs CUDA: something else stands in for it."""
    monkeypatch.setattr(attention, "_cudnn_runs", lambda *args: True)
    monkeypatch.setattr(attention, "_cudnn", lambda heads, q, k, v, bias: q * 3 + k + v)
    heads, (query, key, value, _) = arrays("small", jnp.bfloat16)

    def lowered(platform):
        function = jax.jit(lambda *x: attention.fastest_attention(heads, *x))
        return jax.export.export(function, platforms=[platform])(query, key, value).mlir_module()

    assert "exponential" not in lowered("cuda") and "3.000" in lowered("cuda")
    assert all("exponential" in lowered(platform) for platform in ("cpu", "tpu", "rocm"))


@pytest.mark.parametrize("name", SHAPES)
def test_cudnn_gets_an_even_number_of_tokens_where_it_is_differentiated(name, monkeypatch):
    """jax refuses to differentiate cuDNN's attention of an odd number of tokens, which So400m/14-384 has: 729."""
    kernel, lengths = jax.nn.dot_product_attention, []

    def stand_in(q, k, v, implementation, **options):
        assert implementation == "cudnn"
        lengths.append((q.shape[1], k.shape[1]))
        return kernel(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    heads, (query, key, value, cotangent) = arrays(name, jnp.float32)
    expected = float64(heads, query, key, value, cotangent, None)

    def cudnn(*x):
        return attention._cudnn(heads, *x, None)

    alone = cudnn(query, key, value)
    assert lengths == [(query.shape[1], key.shape[1])]  # nothing is padded where nothing is differentiated
    out, pull_back = jax.vjp(cudnn, query, key, value)
    assert all(number % 2 == 0 for number in lengths[-1])
    for found, right in zip((alone, out, *pull_back(cotangent)), (expected[0], *expected), strict=False):
        np.testing.assert_allclose(np.asarray(found, np.float64), right, atol=1e-5 * np.abs(right).max())


def test_a_tpu_gets_its_kernel_where_it_pays_and_others_do_not():
    rng = np.random.default_rng(0)
    few, many = (jnp.asarray(rng.normal(size=(1, tokens, 256)), jnp.bfloat16) for tokens in (64, 132))

    def lowered(platform, x, attend):
        function = jax.jit(lambda x: attend(4, x, x, x, mask_to_bias(jnp.ones(x.shape[:2], bool))))
        return jax.export.export(function, platforms=[platform])(x).mlir_module()

    assert "tpu_custom_call" in lowered("tpu", many, attention.fastest_attention)
    assert "tpu_custom_call" not in lowered("tpu", few, attention.fastest_attention)
    assert "tpu_custom_call" in lowered("tpu", few, attention.pallas_attention)
    for platform in ("cpu", "cuda"):
        assert "tpu_custom_call" not in lowered(platform, many, attention.fastest_attention)


def test_the_kernel_for_tpus_is_chosen_by_the_number_of_tokens_and_said():
    chosen = {}
    for tokens, heads, width in (
        (196, 12, 64),
        (256, 12, 64),
        (576, 16, 64),
        (576, 24, 64),
        (729, 16, 72),
        (64, 12, 64),
    ):
        said = describe_attention("auto", "bfloat16", width, "tpu", tokens=tokens, num_heads=heads)
        chosen[tokens, heads * width] = said.split(":")[0]
    xla = {(196, 768), (64, 768)}
    assert chosen == {size: "xla" if size in xla else "pallas" for size in chosen}
    assert describe_attention("pallas", "bfloat16", 64, "tpu").startswith("pallas")
    with pytest.raises(ValueError, match="backend must be a TPU for .*'pallas', got 'cpu'; use 'auto' or 'xla'"):
        describe_attention("pallas", "bfloat16", 64, "cpu")


def test_xla_stands_in_with_one_warning_for_a_kernel_that_does_not_compile(monkeypatch):
    monkeypatch.setattr(pallas, "platform_of", lambda mesh: "tpu")  # the CPU's compiler refuses the kernel
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 133, 128)), jnp.float32)
    with pytest.warns(UserWarning, match="133 tokens and 2 heads of 64 is computed by XLA, .*: .*'xla' does the same"):
        out = attention.fastest_attention(2, x, x, x)
    again = attention.fastest_attention(2, x, x, x)  # warnings are errors
    np.testing.assert_array_equal(out, again)
    np.testing.assert_allclose(out, xla_attention(2, x, x, x), atol=1e-6)
