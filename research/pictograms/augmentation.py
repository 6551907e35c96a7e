"""Augmentation for small pictograms: variation of drawing style, so that the model generalises to unseen vendors.

Geometry (a small affine map) runs on the host with Pillow, several times faster on a CPU than a gather under XLA.
Everything else is elementwise or a small matrix product and runs inside the jitted training step: colour and tone, soft
lighting and relief from a blurred silhouette (which makes flat drawings look moulded), blur and sharpening,
backgrounds, cut-outs. Every strength is sampled for each image, and is zero for a share of the images.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt8
from PIL import Image

SIZE = 64  # pixels


def affine_coefficients(
    rng: np.random.Generator, flip: Bool[np.ndarray, " n"], smallest: float = 0.8
) -> Float[np.ndarray, "n 6"]:
    """Returns random inverse affine maps about the centre: rotation, scale, aspect, shear, shift and mirroring.

    Args:
      rng: generator of every sample.
      flip: whether each map mirrors.
      smallest: smallest scale.
    """
    n = len(flip)
    angle = np.deg2rad(rng.normal(0, 7, n).clip(-20, 20))
    scale = np.exp(rng.uniform(np.log(smallest), np.log(1.12), n))
    aspect = np.exp(rng.normal(0, 0.07, n).clip(-0.2, 0.2))
    shear = rng.normal(0, 0.06, n).clip(-0.2, 0.2)
    shift = rng.uniform(-0.06, 0.06, (n, 2)) * SIZE
    zeros, ones = np.zeros(n), np.ones(n)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.array([[aspect / scale, zeros], [zeros, 1 / (aspect * scale)]])
    slant = np.array([[ones, shear], [zeros, ones]])
    linear = np.einsum("ijn,jkn,kln->nil", rotation, slant, stretch)
    linear[flip, :, 0] *= -1
    centre = (SIZE - 1) / 2 + 0.5
    offset = centre - (linear @ (centre + shift)[..., None])[..., 0]
    return np.concatenate([linear[:, 0], offset[:, :1], linear[:, 1], offset[:, 1:]], axis=1)


def warp(images: list[Image.Image], coefficients: Float[np.ndarray, "n 6"]) -> UInt8[np.ndarray, "n 64 64 4"]:
    """Resamples premultiplied ("RGBa") images with inverse affine maps; pixels outside an image are transparent."""
    out = np.empty((len(images), SIZE, SIZE, 4), np.uint8)
    for i, (image, row) in enumerate(zip(images, coefficients, strict=True)):
        moved = image.transform(
            (SIZE, SIZE), Image.Transform.AFFINE, tuple(map(float, row)), resample=Image.Resampling.BILINEAR
        )
        out[i] = np.asarray(moved)
    return out


def blur_matrix(sigma: float) -> np.ndarray:
    """Returns the matrix that blurs a column of pixels by a Gaussian of `sigma` pixels."""
    distance = np.arange(SIZE)[:, None] - np.arange(SIZE)[None]
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _slope_matrix() -> np.ndarray:
    """Returns the matrix of central differences: row i of its product with a column is the slope at pixel i."""
    return (np.eye(SIZE, k=1) - np.eye(SIZE, k=-1)).astype(np.float32)


def separable(x: Float[Array, "n c h w"], rows: np.ndarray, columns: np.ndarray) -> Float[Array, "n c u v"]:
    """Filters both axes of an image by two small matrix products, the fastest form on a CPU."""
    return jnp.einsum("uh,nchv->ncuv", rows, jnp.einsum("nchw,vw->nchv", x, columns))


def recolour(key: Key[Array, ""], rgb: Float[Array, "n 3 h w"]) -> Float[Array, "n 3 h w"]:
    """Changes hue, saturation, contrast, brightness and gamma; turns some images grey and posterises some."""
    n = rgb.shape[0]
    keys = jax.random.split(key, 8)

    def normal(k, deviation):
        return deviation * jnp.clip(jax.random.normal(k, (n, 1, 1, 1)), -2.5, 2.5)

    # One 3 x 3 matrix per image rotates the colours about the grey axis and scales their saturation.
    saturation = jnp.exp(normal(keys[1], 0.3))
    saturation = jnp.where(jax.random.bernoulli(keys[2], 0.08, (n, 1, 1, 1)), 0.0, saturation)[:, :, 0]
    angle = normal(keys[0], 0.12)[:, :, 0]
    grey = jnp.full((1, 3, 3), 1 / 3)
    turn = jnp.asarray([[[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]]) / jnp.sqrt(3.0)
    matrix = grey + saturation * (jnp.cos(angle) * (jnp.eye(3)[None] - grey) + jnp.sin(angle) * turn)
    matrix = matrix * jnp.exp(normal(keys[3], 0.2))[:, :, 0]
    rgb = jnp.einsum("nij,njhw->nihw", matrix, rgb - 0.5) + 0.5 + normal(keys[4], 0.07)
    rgb = jnp.exp(jnp.log(jnp.clip(rgb, 1e-3, 1.0)) * jnp.exp(normal(keys[5], 0.2)))
    levels = jax.random.randint(keys[6], (n, 1, 1, 1), 3, 7).astype(rgb.dtype)
    posterised = jnp.round(rgb * levels) / levels
    return jnp.where(jax.random.bernoulli(keys[7], 0.12, (n, 1, 1, 1)), posterised, rgb)


def lighten(
    key: Key[Array, ""], rgb: Float[Array, "n 3 h w"], alpha: Float[Array, "n 1 h w"]
) -> Float[Array, "n 3 h w"]:
    """Adds lighting like a renderer's: a gradient of brightness, relief at the edges of shapes, a soft highlight."""
    n = rgb.shape[0]
    keys = jax.random.split(key, 7)
    axis = jnp.linspace(-1.0, 1.0, SIZE)
    x, y = axis[None, None, None, :], axis[None, None, :, None]
    direction = jax.random.uniform(keys[0], (n, 1, 1, 1), minval=-jnp.pi, maxval=jnp.pi)
    cos, sin = jnp.cos(direction), jnp.sin(direction)
    slope = 0.15 * jax.random.normal(keys[1], (n, 1, 1, 1)) * (x * cos + y * sin)
    height = alpha * (0.6 + 0.4 * jnp.mean(rgb, axis=1, keepdims=True))
    blur = blur_matrix(2.0)
    steep = _slope_matrix() @ blur
    rise = separable(height, blur, steep) * cos + separable(height, steep, blur) * sin
    relief = 1.2 * jnp.abs(jax.random.normal(keys[2], (n, 1, 1, 1))) * rise
    centre = jax.random.uniform(keys[3], (n, 2, 1, 1), minval=-0.6, maxval=0.6)
    radius = jax.random.uniform(keys[4], (n, 1, 1, 1), minval=0.15, maxval=0.5)
    strength = jax.random.uniform(keys[5], (n, 1, 1, 1), minval=0.0, maxval=0.4)

    def bell(offset):
        return jnp.exp(-(offset**2) / (2 * radius**2))

    spot = strength * bell(x - centre[:, :1]) * bell(y - centre[:, 1:])
    lit = rgb * (1 + slope + jnp.clip(relief, -0.5, 0.5)) + spot * (1 - rgb)
    return jnp.where(jax.random.bernoulli(keys[6], 0.6, (n, 1, 1, 1)), lit, rgb)


def restyle(key: Key[Array, ""], premultiplied: UInt8[Array, "n 64 64 4"]) -> Float[Array, "n 64 64 3"]:
    """Returns augmented pixels in [-1, 1], composited on white (75 % of the images) or on a random light colour."""
    n = premultiplied.shape[0]
    keys = jax.random.split(key, 9)
    scaled = jnp.moveaxis(premultiplied, -1, 1).astype(jnp.float32) / 255  # channels first, for the matrix products
    alpha = scaled[:, 3:]
    rgb = scaled[:, :3] / jnp.maximum(alpha, 1 / 255)
    changed = jnp.clip(lighten(keys[0], recolour(keys[1], rgb), alpha), 0.0, 1.0)
    rgb = jnp.where(jax.random.bernoulli(keys[2], 0.85, (n, 1, 1, 1)), changed, rgb)

    plain = jax.random.bernoulli(keys[3], 0.75, (n, 1, 1, 1))
    tint = jax.random.uniform(keys[4], (n, 3, 1, 1), minval=0.55, maxval=1.0)
    background = jnp.where(plain, jnp.ones_like(tint), tint)
    hole = jax.random.uniform(keys[5], (n, 4, 1, 1))  # centre x, y; size x, y
    axis = jnp.arange(SIZE, dtype=jnp.float32) / SIZE
    half = jnp.where(jax.random.bernoulli(keys[6], 0.25, (n, 1, 1, 1)), (0.1 + 0.25 * hole[:, 2:]) / 2, 0.0)
    inside_x = jnp.abs(axis[None, None, None, :] - hole[:, :1]) < half[:, :1]
    inside_y = jnp.abs(axis[None, None, :, None] - hole[:, 1:2]) < half[:, 1:]
    alpha = jnp.where(inside_x & inside_y, 0.0, alpha)
    image = rgb * alpha + background * (1 - alpha)

    blur = blur_matrix(0.9)
    amount = jax.random.uniform(keys[7], (n, 1, 1, 1), minval=-1.0, maxval=0.9)  # below zero sharpens
    amount = jnp.where(jax.random.bernoulli(keys[8], 0.4, (n, 1, 1, 1)), amount, 0.0)
    image = image + amount * (separable(image, blur, blur) - image)
    return jnp.moveaxis((jnp.clip(image, 0.0, 1.0) - 0.5) / 0.5, 1, -1)
