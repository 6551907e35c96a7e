"""The preprocessing of a directory of timm as options of an image processor.

Mirrors `transforms_imagenet_eval` of timm with the `pretrained_cfg` of the model: the crops "squash" and "center".
"""

import math
from collections.abc import Mapping
from typing import Any

from siglip_jax._checks import check_choice, shown
from siglip_jax.processing.images.kinds import PER_CHANNEL
from siglip_jax.processing.images.steps import RESAMPLE, naflex_steps, usual_steps

CONFIG = "config.json"
_MODES = ("squash", "center")


def is_timm(d: Mapping[str, Any]) -> bool:
    """Returns whether the contents of a `config.json` are those of timm."""
    return isinstance(d.get("architecture"), str) and not d.get("model_type")


def settings_of(d: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of an image processor, as its file holds them.

    Args:
      d: contents of timm's `config.json`.

    Raises:
      ValueError: if the preprocessing is invalid, or none that an image processor can do.
    """
    part = d.get("pretrained_cfg", d)
    given = {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else {}
    size, share = given.get("input_size", [3, 224, 224]), given.get("crop_pct", 0.875)
    if not isinstance(size, list) or len(size) != 3 or not all(type(x) is int and 0 < x < 2**16 for x in size):
        raise ValueError(f"input_size must be 3 positive integers, got {shown(size)}")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0.01 <= share <= 1:
        raise ValueError(f"crop_pct must be a number from 0.01 to 1, got {shown(share)}")
    _, height, width = size
    check_choice("interpolation", interpolation := given.get("interpolation", "bilinear"), RESAMPLE)
    check_choice("crop_mode", mode := given.get("crop_mode", "center"), _MODES)
    found = []
    for name, default in (("mean", [0.485, 0.456, 0.406]), ("std", [0.229, 0.224, 0.225])):
        if not PER_CHANNEL.holds(value := given.get(name, default)):
            raise ValueError(f"{name} must be {PER_CHANNEL.name}, got {shown(value)}")
        found.append(value)
    steps = usual_steps(RESAMPLE[interpolation], *found)
    if naflex := naflex_steps(d.get("architecture"), height, width):
        return steps | naflex
    larger = math.floor(height / share), math.floor(width / share)
    steps |= {"image_processor_type": "SiglipImageProcessor", "size": {"height": larger[0], "width": larger[1]}}
    if mode == "center" and height != width:
        raise ValueError(f"input_size must be that of a square for crop_mode='center', got {shown(size)}")
    if mode == "center":
        steps["size"] = {"shortest_edge": larger[0]}
    if mode == "squash" and larger == (height, width):
        return steps
    return steps | {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
