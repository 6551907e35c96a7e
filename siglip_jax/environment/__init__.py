"""What this machine and this installation have, whether they work, and what to do if not.

Nothing here is imported from jax until it is needed, so that an installation whose jax does not import is examined too.
"""

from siglip_jax.environment.examine import Examination, examine

__all__ = ["Examination", "examine"]
