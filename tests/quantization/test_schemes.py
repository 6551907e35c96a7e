"""The codes of a kernel: their values against the definitions in float64, their error, awkward shapes and outliers."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from siglip_jax.quantization.schemes import SCHEMES, Quantized, dequantize, multiply_int8, quantize, stored_shapes

NF4 = np.array(  # QLoRA, appendix E, as bitsandbytes has them
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)
SHAPES = [(128, 5), (77, 3), (1, 3)]  # whole blocks; a padded block; less than a byte


def kernel_of(shape) -> np.ndarray:
    """Normal weights, but the first column is zero and the last one has a weight a thousand times the others."""
    rng = np.random.default_rng(sum(shape))
    kernel = rng.standard_normal(shape) * 0.05
    kernel[:, 0] = 0
    kernel[shape[0] // 2, -1] = 50
    return kernel.astype(np.float32)


def groups(kernel: np.ndarray, scheme: str) -> np.ndarray:
    """The largest magnitude among the weights that share a scale, for every weight, in float64."""
    largest = np.empty(kernel.shape)
    size = {"int4": 32, "nf4": 64}.get(scheme, len(kernel))
    for start in range(0, len(kernel), size):
        block = slice(start, start + size)
        largest[block] = np.abs(kernel[block].astype(np.float64)).max(axis=0)
    return largest


def unpacked(codes) -> np.ndarray:
    codes = np.asarray(codes)
    return np.stack([codes >> 4, codes & 15], axis=1).reshape(-1, codes.shape[1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_error_of_every_weight_is_within_half_a_step(scheme, shape):
    kernel = kernel_of(shape)
    found = np.asarray(jax.jit(dequantize)(quantize(kernel, scheme)), np.float64)
    assert found.shape == kernel.shape
    absmax, exact = groups(kernel, scheme), kernel.astype(np.float64)
    if scheme == "fp8":  # three bits after the point; below 2^-6 of the scale steps of 2^-9
        step = absmax / 448
        bound = np.maximum(np.abs(exact) * 2.0**-4, step * 2.0**-10)
    elif scheme == "nf4":
        places = np.searchsorted(NF4, np.clip(exact / np.where(absmax, absmax, 1), -1, 1)).clip(1, 15)
        bound = absmax * (NF4[places] - NF4[places - 1]) / 2
    else:
        bound = absmax / {"int8": 127.5, "int4": 7.5}[scheme] / 2
    assert (np.abs(found - exact) <= bound * (1 + 1e-4) + 1e-30).all()
    assert (found[:, 0] == 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_is_the_lookup_of_bitsandbytes_table(shape):
    kernel = kernel_of(shape)
    made = quantize(kernel, "nf4")
    codes, absmax = unpacked(made.codes)[: shape[0]], groups(kernel, "nf4")
    absmax[absmax == 0] = 1
    np.testing.assert_array_equal(codes, np.abs((kernel / absmax)[..., None] - NF4).argmin(-1))
    table = NF4.astype(np.float32)
    assert (table.astype(np.float64) == NF4).all()  # the sixteen values are floats: nothing is lost on the way
    np.testing.assert_array_equal(jax.jit(dequantize)(made), table[codes] * absmax.astype(np.float32))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_integers_are_the_nearest(scheme, shape):
    kernel = kernel_of(shape)
    made = quantize(kernel, scheme)
    most, half = {"int8": (127, 127.5), "int4": (7, 7.5)}[scheme]
    codes = np.asarray(made.codes) if scheme == "int8" else unpacked(made.codes)[: shape[0]]
    codes = codes.astype(np.int64)
    codes = codes if scheme == "int8" else (codes ^ 8) - 8
    absmax = groups(kernel, scheme)
    exact = kernel.astype(np.float64) / np.where(absmax, absmax / half, 1)
    assert (np.abs(codes - exact) <= 0.5 + 1e-4).all() and codes.max() == most and codes.min() >= -most - 1


def test_fp8_is_the_type_itself():
    kernel = kernel_of((128, 5))
    made = quantize(kernel, "fp8")
    np.testing.assert_allclose(made.scale[:, 1:], np.abs(kernel[:, 1:]).max(axis=0, keepdims=True) / 448, rtol=1e-6)
    np.testing.assert_array_equal(made.codes, (kernel / np.asarray(made.scale)).astype(ml_dtypes.float8_e4m3fn))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_arrays_have_the_shapes_and_types_that_files_are_checked_against(scheme, shape):
    made = quantize(kernel_of(shape).astype(ml_dtypes.bfloat16), scheme)
    assert (made.codes.shape, made.scale.shape) == stored_shapes(shape, scheme)
    assert (made.codes.dtype, made.scale.dtype) == (SCHEMES[scheme].stored, np.float32)
    assert made.shape == shape and made.nbytes == made.codes.nbytes + made.scale.nbytes


def test_bits_of_a_weight():
    for scheme, bits in {"int8": 8, "fp8": 8, "int4": 5, "nf4": 4.5}.items():
        made = quantize(np.ones((1024, 2), np.float32), scheme)
        assert 8 * made.codes.nbytes + (8 * made.scale.nbytes if SCHEMES[scheme].packed else 0) == bits * 2048


def test_integer_product_is_exact_where_inputs_are_whole():
    rng = np.random.default_rng(0)
    rows = rng.integers(-127, 128, (2, 3, 77)).astype(np.float32)
    rows[..., 5] = 127.5  # so that the step of every row is one; it meets zeros
    kernel = kernel_of((77, 6))
    kernel[5] = 0
    made = quantize(kernel, "int8")
    y = jax.jit(multiply_int8)(jnp.asarray(rows), made)
    whole = rows.astype(np.int64) @ np.asarray(made.codes, np.int64)
    np.testing.assert_allclose(y, whole * np.asarray(made.scale, np.float64)[None], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_integer_product_is_within_half_a_step_of_every_input(dtype):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 77)), dtype)
    made = quantize(kernel_of((77, 6)), "int8")
    kernel = np.asarray(made.codes, np.float64) * np.asarray(made.scale, np.float64)
    rows = np.asarray(x, np.float64)
    y = jax.jit(multiply_int8)(x, made)
    assert y.dtype == dtype and y.shape == (2, 3, 6)
    expected, eps = rows @ kernel, float(ml_dtypes.finfo(dtype).eps)
    bound = np.abs(rows).max(-1, keepdims=True) / 255 * np.abs(kernel).sum(axis=0)
    assert (np.abs(np.asarray(y, np.float64) - expected) <= (bound + eps * np.abs(expected)) * (1 + 1e-4)).all()


def test_a_kernel_is_a_node_of_a_tree():
    made = quantize(kernel_of((64, 4)), "int4")
    assert len(jax.tree.leaves(made)) == 2
    again = jax.tree.map(lambda x: x, made)
    assert isinstance(again, Quantized) and (again.scheme, again.rows) == ("int4", 64)


def test_an_unknown_scheme():
    with pytest.raises(ValueError, match="must be None or one of 'int8', 'int4', 'nf4', 'fp8', got 'int3'"):
        quantize(np.ones((2, 2), np.float32), "int3")


def test_without_the_library(monkeypatch):
    import sys

    from siglip_jax.quantization.schemes import qwix

    monkeypatch.setitem(sys.modules, "qwix", None)
    qwix.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"pip install 'qwix>=\d[\d.]*' \(the extra 'quant'\)$"):
            qwix()
    finally:
        qwix.cache_clear()
