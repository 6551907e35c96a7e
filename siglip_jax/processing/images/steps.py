"""What the preprocessing that timm and open_clip describe has in common, as options of an image processor."""

import math
import re
from typing import Any

RESAMPLE = {"bilinear": 2, "bicubic": 3}
"""Pillow's number of a filter by the name that other programs have for it."""


def usual_steps(resample: int, mean: Any, std: Any) -> dict[str, Any]:
    """Returns the options of a processor that converts to RGB, resizes, rescales and normalises.

    Args:
      resample: Pillow's number of the filter.
      mean: mean of each channel.
      std: standard deviation of each channel.
    """
    steps = dict.fromkeys(("do_convert_rgb", "do_resize", "do_rescale", "do_normalize"), True)
    return {**steps, "resample": resample, "rescale_factor": 1 / 255, "image_mean": mean, "image_std": std}


def naflex_steps(name: Any, height: int, width: int) -> dict[str, Any] | None:
    """Returns the options that a model of variable resolution adds; None for a model of timm of another kind.

    Args:
      name: timm's name of the model.
      height: height of an image, in pixels, with as many patches as the model takes.
      width: width of that image, in pixels.
    """
    if (m := re.match(r"naflexvit_\w+?_patch(\d{1,4})_", str(name))) is None:
        return None
    patch = max(int(m[1]), 1)
    patches = max(math.ceil(height / patch) * math.ceil(width / patch), 1)
    return {"patch_size": patch, "max_num_patches": patches, "image_processor_type": "Siglip2ImageProcessor"}
