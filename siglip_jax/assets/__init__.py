"""Files that ship with the package.

Example:
  >>> (EXAMPLES / "horse.png").is_file()
  True
"""

from pathlib import Path

__all__ = ["BUNDLED_MODEL", "EXAMPLES"]

BUNDLED_MODEL = Path(__file__).parent / "bundled_model"
"""Directory of the small model that `siglip_jax.load()` loads by default."""

EXAMPLES = Path(__file__).parent / "examples"
"""Directory of 64 images that the bundled model was not trained on, with their names in `labels.txt`."""
