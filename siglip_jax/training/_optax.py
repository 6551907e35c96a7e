"""optax, which the extra `train` installs: one import, with the message that says so."""

from siglip_jax._optional import import_optional

import_optional("optax", "training", "train")

import optax as optax  # noqa: E402
import optax.contrib as contrib  # noqa: E402

__all__ = ["contrib", "optax"]
