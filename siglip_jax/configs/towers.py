"""The configurations of the towers of a model, whichever parts of it a configuration describes."""

from typing import Any

from siglip_jax.configs.configuration import Config, TextConfig, VisionConfig


def tower_config(config: Config, part: str) -> Any:
    """Returns the configuration of a tower.

    Args:
      config: configuration of the whole model, or of the tower itself.
      part: top-level name of its parameters, "text_model" or "vision_model".
    """
    return getattr(config, f"{part.removesuffix('_model')}_config", config)


def towers_of(config: Any) -> tuple[VisionConfig | None, TextConfig | None]:
    """Returns the configurations of the image tower and of the text tower, None for one that is not there.

    Args:
      config: configuration of the whole model or of one tower.
    """
    if isinstance(config, TextConfig):
        return None, config
    return getattr(config, "vision_config", config), getattr(config, "text_config", None)
