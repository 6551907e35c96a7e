"""The preprocessing of an open_clip directory as options of an image processor.

Mirrors `image_transform` of open_clip for inference, and how `preprocess_cfg` is merged with the model's image size.
"""

from collections.abc import Mapping
from typing import Any

from siglip_jax._checks import check_choice, shown
from siglip_jax.processing.images.kinds import PER_CHANNEL, SIZE
from siglip_jax.processing.images.steps import RESAMPLE, naflex_steps, usual_steps

CONFIG = "open_clip_config.json"
# Defaults of open_clip, where `preprocess_cfg` is silent.
_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_RESAMPLE = RESAMPLE | {"random": 3}  # "random" is for training; open_clip evaluates with bicubic


def settings_of(d: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of an image processor, as its file holds them.

    Args:
      d: contents of `open_clip_config.json`.

    Raises:
      ValueError: if the preprocessing is invalid, or none that an image processor can do.
    """
    given = {key: value for key, value in _part(d, "preprocess_cfg").items() if value is not None}
    vision = _part(_part(d, "model_cfg"), "vision_cfg")
    mean, std = given.get("mean", _MEAN), given.get("std", _STD)
    for name, value in (("mean", mean), ("std", std)):
        if not PER_CHANNEL.holds(value):
            raise ValueError(f"preprocess_cfg: {name} must be {PER_CHANNEL.name}, got {shown(value)}")
    size = vision.get("image_size") or given.get("size") or 224
    if not SIZE.holds(size) or isinstance(size, Mapping):
        raise ValueError(f"image_size must be {SIZE.name}, got {shown(size)}")
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    check_choice("interpolation", interpolation := given.get("interpolation", "bicubic"), _RESAMPLE)
    steps = usual_steps(_RESAMPLE[interpolation], mean, std)
    if naflex := naflex_steps(vision.get("timm_model_name"), height, width):
        return steps | naflex
    mode = given.get("resize_mode", "shortest")
    steps |= {"image_processor_type": "SiglipImageProcessor"}
    if mode == "squash":
        return steps | {"size": {"height": height, "width": width}}
    if mode == "shortest" and height == width:
        crop = {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
        return steps | crop | {"size": {"shortest_edge": height}}
    raise ValueError(
        f"resize_mode must be 'squash', or 'shortest' for squares, got {shown(mode)} for {height} x {width} pixels;"
        " save an image processor of your own beside the weights with SiglipImageProcessor(...).save_pretrained"
    )


def _part(d: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = d.get(name)
    return part if isinstance(part, Mapping) else {}
