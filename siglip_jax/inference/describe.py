"""What a model is and how it would run on this machine."""

import os
from typing import Any

from siglip_jax.checkpoints.describe import facts_and_config
from siglip_jax.configs.configuration import SiglipConfig
from siglip_jax.inference.choices import choose


def describe_model(name_or_path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Returns the facts about a checkpoint, and how `load` would run it in float32 on this machine.

    Args:
      name_or_path: local directory or file, or a Hub name; None: the bundled model.

    Returns:
      What `siglip_jax.checkpoints.describe` returns, and `engine`: attention, products, batch sizes and threads; {} for
      a tower alone.

    Raises:
      FileNotFoundError: if the checkpoint does not exist.
      ValueError: if it is not a SigLIP checkpoint, or damaged.

    Example:
      >>> sorted(describe_model()["engine"])[0]
      'attention'
    """
    facts, config = facts_and_config(name_or_path)
    return facts | {"engine": choose(config, "float32").facts() if isinstance(config, SiglipConfig) else {}}
