"""Augmented views: parts of the stated area and aspect, mirrored half of the time, the same for the same key."""

import jax
import jax.numpy as jnp
import numpy as np

from siglip_jax.training.views import random_views


def ramps(height, width):
    """Returns an image whose channels are the row, the column, and one half."""
    rows, columns = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return jnp.float32(np.stack([rows, columns, np.full_like(rows, 0.5)], axis=-1))


def test_views_show_parts_of_the_stated_area_and_aspect():
    image = ramps(40, 40)
    views = np.asarray(random_views(jax.random.key(0), jnp.stack([image] * 4), 16, 24, (0.2, 0.6)))
    assert views.shape == (4, 16, 24, 24, 3) and np.isfinite(views).all()
    inner = views[:, :, 4:-4, 4:-4].astype(np.float64)  # beside the border of the image, which is clamped
    down = np.diff(inner[..., 0], axis=2).mean(axis=(2, 3))
    across = np.diff(inner[..., 1], axis=3).mean(axis=(2, 3))
    aspects = np.abs(across / down)
    assert (aspects > 0.74).all() and (aspects < 1.35).all() and aspects.std() > 0.05
    assert 0.2 < (across < 0).mean() < 0.8 and (down > 0).all()
    # Contrast is from 0.6 to 1.4, so the product of both slopes bounds the area.
    areas = down * np.abs(across) * (24 * 39 / 80) ** 2
    assert areas.min() > 0.2 * 0.36 * 0.9 and areas.max() < 0.6 * 1.96 * 1.1


def test_views_depend_on_the_key_and_the_place_alone():
    images = jnp.stack([ramps(20, 30), ramps(20, 30)])
    first, again, other = (random_views(jax.random.key(k), images, 3, 16, (0.5, 1.0)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    flat = np.asarray(jnp.concatenate([first, other])).reshape(12, -1)
    distances = np.abs(flat[:, None] - flat[None]).max(axis=2)
    assert (distances[~np.eye(12, dtype=bool)] > 1e-3).all()
