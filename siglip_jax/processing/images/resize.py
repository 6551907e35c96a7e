"""Pillow's antialiased resize as two matrix products, bit for bit, followed by normalisation.

Mirrors `ImagingResample` of Pillow's C sources for 8-bit images: weights in double precision, rounded to 22 fractional
bits; one pass along the rows and one along the columns, each summed in integers, rounded and clipped to 0..255. The
horizontal pass comes first, except that Pillow 13 starts with the vertical pass if the height shrinks by more than
twice as much as the width.

Matrix units have no such integers. The weights are therefore split into digits so small that all their products and
sums are exact in float32: three digits of 8 bits in bfloat16 on accelerators, two of 11 bits in float32 on a CPU. The
sums of the digits are combined in int32. The result is exact for reductions of at most 85 to 1, or 128 to 1 for
bicubic, which is what a float32 sum can hold; beyond that a value may be off by one.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL
from jaxtyping import Array, Float32, Int32, Shaped, UInt8

from siglip_jax.processing.images.pixels import normalization_table

_BITS = 22  # fractional bits of Pillow's weights
_LARGEST_BATCH = 32  # images per call; limits the memory and the number of compiled batch sizes
NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = range(6)
_MAY_BEGIN_VERTICALLY = int(PIL.__version__.split(".")[0]) >= 13
_SUPPORT = {LANCZOS: 3.0, BILINEAR: 1.0, BICUBIC: 2.0, BOX: 0.5, HAMMING: 1.0}


class Taps(NamedTuple):
    """Sparse weights of one axis: output `o` is the sum over k of `weights[o, k] * input[starts[o] + k]` / 2**22.

    Attributes:
      starts: index of the first input of each output, (out,) int32.
      weights: fixed-point weights of the inputs of each output, (out, tap) int32, in units of 2**-22.
    """

    starts: Int32[np.ndarray, " out"]
    weights: Int32[np.ndarray, "out tap"]


def _filter(resample: int, x: np.ndarray) -> np.ndarray:
    """Returns the value of a filter at the distances `x`."""
    if resample == BOX:
        return ((x > -0.5) & (x <= 0.5)).astype(np.float64)
    if resample == LANCZOS:
        return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0.0)
    x = np.abs(x)
    if resample == BILINEAR:
        return np.where(x < 1, 1 - x, 0.0)
    if resample == HAMMING:
        low, high = float(np.float32(0.54)), float(np.float32(0.46))  # single precision in Pillow
        return np.where(x < 1, np.sinc(x) * (low + high * np.cos(np.pi * x)), 0.0)
    a = -0.5  # bicubic
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def tap_count(in_size: int, out_size: int, resample: int) -> int:
    """Returns the largest number of inputs of one output; it never decreases as `in_size` grows."""
    if resample == NEAREST:
        return 1
    return math.ceil(_SUPPORT[resample] * max(in_size / out_size, 1.0)) * 2 + 1


def vertical_first(height: int, width: int, size: tuple[int, int]) -> bool:
    """Returns whether the installed Pillow starts with the vertical pass to resize an image to (height, width)."""
    shrinks = height - size[0]
    return _MAY_BEGIN_VERTICALLY and shrinks > 0 and shrinks > 2 * (width - size[1])


@functools.lru_cache(maxsize=256)
def taps(in_size: int, out_size: int, resample: int) -> Taps:
    """Returns the weights with which Pillow resizes one axis.

    Args:
      in_size: length of the axis before, in pixels.
      out_size: length of the axis after, in pixels.
      resample: Pillow's number of the filter, 0 to 5.
    """
    scale = in_size / out_size
    if resample == NEAREST:  # Pillow adds steps in this way, with these rounding errors
        centers = np.add.accumulate(np.concatenate([[scale * 0.5], np.full(out_size - 1, scale)]))
        return Taps(np.floor(centers).astype(np.int32), np.full((out_size, 1), 1 << _BITS, np.int32))
    stretch = max(scale, 1.0)
    support = _SUPPORT[resample] * stretch
    centers = (np.arange(out_size) + 0.5) * scale
    starts = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    ends = np.minimum((centers + support + 0.5).astype(np.int64), in_size)
    columns = np.arange(tap_count(in_size, out_size, resample))
    inside = columns < (ends - starts)[:, None]
    x = columns + starts[:, None] - centers[:, None] + 0.5
    weights = np.where(inside, _filter(resample, x * (1.0 / stretch)), 0.0)
    total = np.add.accumulate(weights, axis=1)[:, -1:]  # sequential, as Pillow sums
    weights = np.divide(weights, total, out=weights, where=total != 0.0)
    fixed = np.trunc(weights * (1 << _BITS) + np.where(weights < 0, -0.5, 0.5))
    return Taps(starts.astype(np.int32), fixed.astype(np.int32))


def _digits(starts: Any, weights: Any, in_size: int, dtype: Any) -> tuple[list[Array], int]:
    """Returns the dense matrices (image, out, in) of the weights' digits, lowest first, and the bits per digit."""
    count = weights.shape[-1]
    bits, digits = (11, 2) if dtype == jnp.float32 and count <= 64 else (8, 3)
    offset = jnp.arange(in_size, dtype=jnp.int32)[None, None, :] - starts[..., None]
    here = (offset >= 0) & (offset < count)
    dense = jnp.where(here, jnp.take_along_axis(weights, jnp.clip(offset, 0, count - 1), axis=-1), 0)
    out, half, base = [], 1 << (bits - 1), 1 << bits
    for _ in range(digits - 1):
        low = ((dense + half) & (base - 1)) - half
        out.append(low.astype(dtype))
        dense = (dense - low) >> bits
    return [*out, dense.astype(dtype)], bits


def _pass(equation: str, matrices: list[Array], bits: int, image: Array) -> Array:
    """Returns the images after one pass, rounded and clipped to 0..255, in int32."""
    total = jnp.int32(1 << (_BITS - 1))
    for i, matrix in enumerate(matrices):
        part = jnp.einsum(
            equation, matrix, image, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
        )
        total = total + (part.astype(jnp.int32) << (bits * i))
    return jnp.clip(total >> _BITS, 0, 255)


def apply_taps(
    images: UInt8[Array, "image height width channel"],
    rows: tuple[Int32[Array, "image out_height"], Int32[Array, "image out_height row_tap"]],
    columns: tuple[Int32[Array, "image out_width"], Int32[Array, "image out_width column_tap"]],
    vertically_first: bool,
) -> UInt8[Array, "image out_height out_width channel"]:
    """Resizes images with the weights of their rows and columns; padding beyond the taps has no effect.

    Args:
      images: images, which may be padded below and to the right.
      rows: starts and weights of the vertical pass of each image.
      columns: starts and weights of the horizontal pass of each image.
      vertically_first: whether the vertical pass comes first.
    """
    on_cpu, elsewhere = (
        functools.partial(_apply_taps, dtype, vertically_first)
        for dtype in (jnp.float32, jnp.bfloat16)  # both hold 0..255
    )
    return jax.lax.platform_dependent(images, rows, columns, cpu=on_cpu, default=elsewhere)


def _apply_taps(dtype: Any, vertically_first: bool, images: Array, rows: Any, columns: Any) -> Array:
    _, height, width, _ = images.shape
    passes = [
        ("now,nhwc->nhoc", *_digits(columns[0], columns[1], width, dtype)),
        ("noh,nhwc->nowc", *_digits(rows[0], rows[1], height, dtype)),
    ]
    out: Array = images
    for equation, matrices, bits in reversed(passes) if vertically_first else passes:
        out = _pass(equation, matrices, bits, out.astype(dtype))
    return out.astype(jnp.uint8)


def look_up(
    images: UInt8[Array, "image height width channel"], table: Float32[Array, "channel 256"]
) -> Float32[Array, "image height width channel"]:
    """Returns the table's entry for each value of each channel."""
    channel = jnp.arange(table.shape[0], dtype=jnp.int32)[None, None, None, :]
    return table[channel, images.astype(jnp.int32)]


def resize_and_normalize(
    images: UInt8[Array, "image height width channel"],
    size: tuple[int, int],
    resample: int = BICUBIC,
    mean: float | tuple[float, ...] = (0.5, 0.5, 0.5),
    std: float | tuple[float, ...] = (0.5, 0.5, 0.5),
    rescale_factor: float = 1 / 255,
) -> Float32[Array, "image out_height out_width channel"]:
    """Resizes images bit for bit as Pillow does and returns `(value * rescale_factor - mean) / std`.

    It is a pure function for use inside a user's own `jax.jit`; the sizes and options are static there. The values are
    those of `SiglipImageProcessor`, whose default options are the defaults here.

    Source: `ImagingResample` in Pillow's `src/libImaging/Resample.c`.

    Args:
      images: images of one size, (images, height, width, channels) uint8.
      size: (height, width) of the result, in pixels.
      resample: Pillow's number of the filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming.
      mean: mean that is subtracted after rescaling, a number or one per channel.
      std: standard deviation that the difference is divided by, a number or one per channel.
      rescale_factor: factor of the uint8 values before normalisation.

    Returns:
      Images of shape (images, size[0], size[1], channels) float32.

    Raises:
      ValueError: if `mean` or `std` does not have one number per channel.

    Example:
      >>> images = jnp.full((2, 40, 30, 3), 255, jnp.uint8)
      >>> resized = jax.jit(lambda images: resize_and_normalize(images, (16, 16)))(images)
      >>> resized.shape, resized.max().item()
      ((2, 16, 16, 3), 1.0)
    """
    count, height, width, channels = images.shape
    if (height, width) != tuple(size):
        rows, columns = taps(height, size[0], resample), taps(width, size[1], resample)
        first = vertical_first(height, width, size)
        images = apply_taps(images, _repeated(rows, count), _repeated(columns, count), first)
    return look_up(images, jnp.asarray(normalization_table(rescale_factor, mean, std, channels)))


def _repeated(axis: Taps, count: int) -> Any:
    """Returns the taps of one image repeated for `count` images."""
    return tuple(jnp.broadcast_to(jnp.asarray(a), (count, *a.shape)) for a in axis)


@functools.partial(jax.jit, static_argnames="vertically_first")
def _resized(images: Any, rows: Any, columns: Any, table: Any, vertically_first: bool) -> Array:
    out = apply_taps(images, rows, columns, vertically_first)
    return out if table is None else look_up(out, table)


def bucket(size: int) -> int:
    """Returns the smallest of the compiled sizes 32, 48, 64, 96, 128, 192, ... that is not below `size`."""
    power = 1 << max(size - 1, 31).bit_length()
    return power * 3 // 4 if size <= power * 3 // 4 and power > 32 else power


def powers_of_two(members: Sequence[int]) -> list[Sequence[int]]:
    """Splits a list into runs whose lengths are powers of two, the longest first."""
    parts, start = [], 0
    while start < len(members):
        length = min(1 << ((len(members) - start).bit_length() - 1), _LARGEST_BATCH)
        parts.append(members[start : start + length])
        start += length
    return parts


def resize_ragged(
    images: Sequence[UInt8[np.ndarray, "_ _ channel"]],
    size: tuple[int, int],
    resample: int,
    table: Float32[np.ndarray, "channel 256"] | None,
) -> Shaped[Array, "image out_height out_width channel"]:
    """Resizes images of different sizes to one size, on the default device.

    Args:
      images: images of one number of channels, (height, width, channels) uint8 each. Their sizes share a `bucket`, and
        `vertical_first` is the same for all.
      size: (height, width) of the result, in pixels.
      resample: Pillow's number of the filter, 0 to 5.
      table: the float32 result for each uint8 value of each channel; None: the result is uint8.
    """
    height, width = bucket(max(i.shape[0] for i in images)), bucket(max(i.shape[1] for i in images))
    canvas = np.zeros((len(images), height, width, images[0].shape[2]), np.uint8)
    for slot, image in zip(canvas, images, strict=True):
        slot[: image.shape[0], : image.shape[1]] = image
    rows = _stacked([taps(i.shape[0], size[0], resample) for i in images], tap_count(height, size[0], resample))
    columns = _stacked([taps(i.shape[1], size[1], resample) for i in images], tap_count(width, size[1], resample))
    first = vertical_first(images[0].shape[0], images[0].shape[1], size)
    return _resized(canvas, rows, columns, table, vertically_first=first)


def _stacked(axes: Sequence[Taps], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the taps of several images padded to one number of taps, so that shapes do not depend on exact sizes."""
    weights = np.zeros((len(axes), len(axes[0].starts), count), np.int32)
    for slot, axis in zip(weights, axes, strict=True):
        slot[:, : axis.weights.shape[1]] = axis.weights
    return np.stack([axis.starts for axis in axes]), weights
