"""Description of a checkpoint and of how it runs on this machine."""

import os
from typing import Any

from siglip_jax.checkpoints.describe import facts_and_config
from siglip_jax.configs.configuration import SiglipConfig
from siglip_jax.inference.choices import choose


def describe_model(name_or_path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Returns the properties of a checkpoint and how `load` runs it in float32 on this machine.

    No weights are read, and nothing is downloaded for a released checkpoint.

    Args:
      name_or_path: local directory or weights file, or a Hub name; None: the bundled model.

    Returns:
      The dictionary of `siglip_jax.checkpoints.describe` (`format`, `architecture`, sizes, numbers of parameters, ...)
      with the key `engine`: "runs on", "batches", "attention", "products" and "decoding", in words; {} for a single
      tower.

    Raises:
      FileNotFoundError: if the checkpoint does not exist.
      ValueError: if it is not a SigLIP checkpoint, or is damaged.

    Example:
      >>> facts = describe_model()
      >>> facts["format"], sorted(facts["engine"])
      ('huggingface', ['attention', 'batches', 'decoding', 'products', 'runs on'])
    """
    facts, config = facts_and_config(name_or_path)
    return facts | {"engine": choose(config, "float32").facts() if isinstance(config, SiglipConfig) else {}}
