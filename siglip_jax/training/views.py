"""Augmented views of images, made on the accelerator from a key: random parts, mirrored, with other colours.

Source: the augmentation of DINO (Caron et al. 2021, arXiv 2104.14294), without blur and solarisation.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

GLOBAL_AREA = (0.4, 1.0)  # share of the area of an image that a large view shows
LOCAL_AREA = (0.05, 0.4)  # share that a small view shows
ASPECT = (3 / 4, 4 / 3)  # ratio of width to height of the part
CONTRAST = (0.6, 1.4)
BRIGHTNESS = 0.4  # largest change, in units of the normalised pixels


def random_views(
    key: Key[Array, ""],
    images: Float[Array, "images height width channels"],
    count: int,
    size: int,
    area: tuple[float, float],
) -> Float[Array, "images count size size channels"]:
    """Returns views of each image: a random part, resized, half of them mirrored, with other contrast and brightness.

    Args:
      key: random key.
      images: pixels as the model takes them, (images, height, width, channels).
      count: number of views of each image.
      size: width and height of a view in pixels.
      area: least and largest share of the area of the image that a view shows.

    Returns:
      (images, count, size, size, channels).

    Example:
      >>> views = random_views(jax.random.key(0), jnp.zeros((2, 32, 48, 3)), 8, 16, (0.05, 0.4))
      >>> views.shape
      (2, 8, 16, 16, 3)
    """
    draw = jax.vmap(functools.partial(_view, size=size, area=area), in_axes=(0, None))
    keys = jax.random.split(key, (len(images), count))
    return jax.vmap(draw)(keys, images)


def _view(
    key: Key[Array, ""], image: Float[Array, "height width channels"], *, size: int, area: tuple[float, float]
) -> Float[Array, "size size channels"]:
    """Returns one view of an image."""
    of_area, of_aspect, of_place, of_flip, of_contrast, of_brightness = jax.random.split(key, 6)
    height, width, channels = image.shape
    share = jax.random.uniform(of_area, minval=area[0], maxval=area[1])
    aspect = jnp.exp(jax.random.uniform(of_aspect, minval=math.log(ASPECT[0]), maxval=math.log(ASPECT[1])))
    shape = jnp.minimum(jnp.stack([jnp.sqrt(share / aspect), jnp.sqrt(share * aspect)]), 1.0)  # of 1, the whole side
    corner = jax.random.uniform(of_place, (2,)) * (1 - shape)
    sides = jnp.array([height, width], jnp.float32)
    scale = size / (shape * sides)
    moved = -corner * sides * scale
    part = jax.image.scale_and_translate(
        image.astype(jnp.float32), (size, size, channels), (0, 1), scale, moved, "linear", antialias=True
    )
    part = jnp.where(jax.random.bernoulli(of_flip), part[:, ::-1], part)
    contrast = jax.random.uniform(of_contrast, minval=CONTRAST[0], maxval=CONTRAST[1])
    brightness = jax.random.uniform(of_brightness, minval=-BRIGHTNESS, maxval=BRIGHTNESS)
    mean = jnp.mean(part)
    return ((part - mean) * contrast + mean + brightness).astype(image.dtype)
