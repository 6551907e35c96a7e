"""Imports Optax, or fails with a message that names the extra `train`, which installs it."""

from siglip_jax._optional import import_optional

import_optional("optax", "training", "train")

import optax as optax  # noqa: E402
import optax.contrib as contrib  # noqa: E402

__all__ = ["contrib", "optax"]
