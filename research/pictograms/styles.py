"""Wide augmentation for small pictograms: styles and backgrounds that no training image has.

Adds to the colour, light and relief of `augmentation` drawings in ink (filled or hollow lines, and glyphs: dark shapes
with gaps along the edges), also light on dark, and backgrounds: plain colours, smooth and fine noise, other images near
and far. Everything is elementwise or a small matrix product and runs inside the jitted training step.

The rows of a batch are in random order, so a random share of the images is a range of rows and no work is wasted.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt8

from research.pictograms.augmentation import SIZE, blur_matrix, lighten, recolour, separable

REDRAWN = 0.3  # share of the images that become drawings in ink
BUSY = 0.35  # share of the images on noise or on other images
BUSY_DRAWN = 0.1  # share of the images that are both
LUMA = np.asarray([0.3, 0.59, 0.11], np.float32).reshape(1, 3, 1, 1)

Planes = Float[Array, "n 3 h w"]
Plane = Float[Array, "n 1 h w"]


def _uniform(key: Key[Array, ""], n: int, low: float = 0.0, high: float = 1.0, channels: int = 1) -> Array:
    return jax.random.uniform(key, (n, channels, 1, 1), minval=low, maxval=high)


def _some(key: Key[Array, ""], n: int, rate: float) -> Bool[Array, "n 1 1 1"]:
    return jax.random.bernoulli(key, rate, (n, 1, 1, 1))


def _samples(at: np.ndarray, size: int) -> Float[np.ndarray, "rows size"]:
    """Returns the matrix that interpolates a column of `size` pixels linearly at the positions `at`."""
    at = np.clip(at, 0, size - 1)
    left = np.minimum(np.floor(at).astype(int), size - 2)
    matrix, rows = np.zeros((len(at), size), np.float32), np.arange(len(at))
    matrix[rows, left] = 1 - (at - left)
    matrix[rows, left + 1] = at - left
    return matrix


_PIXELS = np.arange(SIZE)
_STRETCH = {n: _samples((_PIXELS + 0.5) * n / SIZE - 0.5, n) for n in (3, 8, 24)}
_NEAR = _samples((_PIXELS + 0.5) / 1.7 + SIZE * (1 - 1 / 1.7) / 2 - 0.5, SIZE)  # enlarges the middle
# Half the difference of the neighbours; the border is replicated.
_SLOPE = (_samples(_PIXELS + 1.0, SIZE) - _samples(_PIXELS - 1.0, SIZE)) / 2


def _ink(key: Key[Array, ""], rgb: Planes, alpha: Plane) -> Plane:
    """Returns ink in [0, 1] along edges of colours and outline: thin or thick, sparse or dense, crisp or soft."""
    n = len(rgb)
    keys = jax.random.split(key, 4)
    planes = jnp.concatenate([rgb * alpha + 0.5 * (1 - alpha), alpha], axis=1)

    def steepness(sigma: float) -> Float[Array, "n 4 h w"]:
        blur = blur_matrix(sigma)
        slope = _SLOPE @ blur
        square = separable(planes, blur, slope) ** 2 + separable(planes, slope, blur) ** 2
        return sigma * jnp.sqrt(square + 1e-8)

    thick = _uniform(keys[0], n)
    steep = steepness(0.55) * (1 - thick) + steepness(1.3) * thick
    inner = jnp.sqrt((steep[:, :3] ** 2).sum(axis=1, keepdims=True)) * _uniform(keys[1], n, 0.6, 1.6)
    edge = jnp.maximum(inner, 1.2 * steep[:, 3:])
    threshold = jnp.exp(_uniform(keys[2], n, np.log(0.06), np.log(0.2)))
    return jax.nn.sigmoid((edge / threshold - 1) / _uniform(keys[3], n, 0.12, 0.35))


def redraw(key: Key[Array, ""], rgb: Planes, alpha: Plane) -> tuple[Planes, Plane]:
    """Redraws images in ink, 65 % as lines, the others as glyphs, one in eight light on dark; returns (rgb, alpha)."""
    n = len(rgb)
    keys = jax.random.split(key, 14)
    ink = _ink(keys[0], rgb, alpha)
    dark = jnp.where(_some(keys[2], n, 0.3), _uniform(keys[1], n, 0.0, 0.25, 3), 0.0)
    light = 1 - jnp.where(_some(keys[4], n, 0.3), _uniform(keys[3], n, 0.0, 0.25, 3), 0.0)
    inverted = _some(keys[5], n, 0.12)
    pen, paper = jnp.where(inverted, light, dark), jnp.where(inverted, dark, light)

    filling = _uniform(keys[6], n)  # selects hollow, paper, few tones, one colour, or the original colours
    levels = jax.random.randint(keys[7], (n, 1, 1, 1), 1, 4).astype(rgb.dtype)
    coloured = jnp.where(filling < 0.75, jnp.round(rgb * levels) / levels, rgb)
    coloured = jnp.where((filling >= 0.75) & (filling < 0.85), _uniform(keys[8], n, 0.3, 1.0, 3), coloured)
    lines = ink * pen + (1 - ink) * jnp.where(filling < 0.5, paper, coloured)
    lines_alpha = jnp.maximum(ink, jnp.where((filling < 0.3) & ~inverted, 0.0, alpha))

    luma = (rgb * LUMA).sum(axis=1, keepdims=True)
    shade = jax.nn.sigmoid((_uniform(keys[9], n, 0.35, 1.1) - luma) / 0.06)
    gaps = jnp.where(_some(keys[10], n, 0.7), jnp.clip(1.2 * ink, 0.0, 1.0), 0.0)
    body = jnp.maximum(alpha * shade * (1 - gaps), jnp.where(_some(keys[11], n, 0.35), ink, 0.0))
    glyph = body * pen + (1 - body) * paper
    cut_out = _some(keys[12], n, 0.5) & ~inverted
    glyph_alpha = jnp.where(cut_out, body, jnp.maximum(alpha, body))

    as_lines = _some(keys[13], n, 0.65)
    return jnp.where(as_lines, lines, glyph), jnp.where(as_lines, lines_alpha, glyph_alpha)


def surroundings(key: Key[Array, ""], images: Planes, others: Planes) -> Planes:
    """Returns busy backgrounds for n images: noise at three scales on a plain colour, or crops of n other images."""
    n = len(images)
    keys = jax.random.split(key, 10)

    def noise(key: Key[Array, ""], size: int) -> Planes:
        keys = jax.random.split(key, 2)
        values = jax.random.normal(keys[0], (n, 3, size, size))
        grey = _uniform(keys[1], n)
        values = values * (1 - grey) + 1.5 * grey * values.mean(axis=1, keepdims=True)
        return separable(values, _STRETCH[size], _STRETCH[size])

    texture = 0.3 * _uniform(keys[0], n) * noise(keys[1], 3) + 0.2 * _uniform(keys[2], n) * noise(keys[3], 8)
    texture = texture + 0.12 * _uniform(keys[4], n) ** 2 * noise(keys[5], 24)
    ground = _uniform(keys[6], n, channels=3) + texture
    far = blur_matrix(1.5) @ _NEAR
    blurred = _some(keys[7], n, 0.5)
    scene = jnp.where(blurred, separable(others, far, far), separable(others, _NEAR, _NEAR))
    return jnp.clip(jnp.where(_some(keys[8], n, 0.45), 0.7 * scene + 0.3 * ground, ground), 0.0, 1.0)


def restyle_widely(key: Key[Array, ""], premultiplied: UInt8[Array, "n 64 64 4"]) -> Float[Array, "n 64 64 3"]:
    """Returns augmented pixels in [-1, 1] of premultiplied RGBA rows, which must be in random order."""
    n = len(premultiplied)
    redrawn, busy = round(REDRAWN * n), round(BUSY * n)
    first_busy = redrawn - round(BUSY_DRAWN * n)
    keys = jax.random.split(key, 16)
    scaled = jnp.moveaxis(premultiplied, -1, 1).astype(jnp.float32) / 255  # channels first, for the matrix products
    alpha = scaled[:, 3:]
    rgb = scaled[:, :3] / jnp.maximum(alpha, 1 / 255)
    drawn, drawn_alpha = redraw(keys[0], rgb[:redrawn], alpha[:redrawn])
    painted = jnp.clip(lighten(keys[1], recolour(keys[2], rgb[redrawn:]), alpha[redrawn:]), 0.0, 1.0)
    painted = jnp.where(_some(keys[3], n - redrawn, 0.85), painted, rgb[redrawn:])
    shown = jnp.concatenate([drawn, painted])
    alpha = jnp.concatenate([drawn_alpha, alpha[redrawn:]])

    white = _some(keys[4], n, 0.7)
    pale = _some(keys[5], n, 0.5)
    tint = jnp.where(pale, _uniform(keys[6], n, 0.55, 1.0, 3), _uniform(keys[7], n, 0.0, 1.0, 3))
    ground = jnp.broadcast_to(jnp.where(white, 1.0, tint), shown.shape)
    last = slice(n - busy, n)
    others = shown[last] * alpha[last] + (1 - alpha[last]) * _uniform(keys[8], busy, 0.4, 1.0, 3)
    busy_rows = slice(first_busy, first_busy + busy)
    ground = ground.at[busy_rows].set(surroundings(keys[9], shown[busy_rows], others))

    hole = _uniform(keys[10], n, channels=4)  # centre x, y; size x, y
    axis = jnp.arange(SIZE, dtype=jnp.float32) / SIZE
    half = jnp.where(_some(keys[11], n, 0.2), (0.1 + 0.25 * hole[:, 2:]) / 2, 0.0)
    inside_x = jnp.abs(axis[None, None, None, :] - hole[:, :1]) < half[:, :1]
    inside_y = jnp.abs(axis[None, None, :, None] - hole[:, 1:2]) < half[:, 1:]
    alpha = jnp.where(inside_x & inside_y, 0.0, alpha)
    image = shown * alpha + ground * (1 - alpha)

    blur = blur_matrix(0.9)
    amount = jnp.where(_some(keys[12], n, 0.4), _uniform(keys[13], n, -1.0, 0.9), 0.0)  # below zero sharpens
    image = image + amount * (separable(image, blur, blur) - image)
    strength = 0.08 * _uniform(keys[14], busy)
    grain = strength * jax.random.normal(keys[15], (busy, 1, SIZE, SIZE))
    image = image.at[busy_rows].add(grain)
    return jnp.moveaxis((jnp.clip(image, 0.0, 1.0) - 0.5) / 0.5, 1, -1)
