"""What each option of an image processor may hold, in a file or in a call."""

from collections.abc import Iterable, Mapping
from typing import Any

from siglip_jax._fields import BOOLEAN, COUNT, NUMBER, PIXELS, TEXT, Kind, integer


def _is_size(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(map(PIXELS.holds, value.values()))
    return PIXELS.holds(value) or isinstance(value, (list, tuple)) and len(value) == 2 and all(map(PIXELS.holds, value))


def _is_per_channel(value: Any) -> bool:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        return NUMBER.holds(value)
    values = list(value)
    return 0 < len(values) <= 4 and all(map(NUMBER.holds, values))


SIZE = Kind(f"a size in whole pixels, each from 1 to {PIXELS.name.split()[-1]}", _is_size)
PER_CHANNEL = Kind("a number or one per channel, each finite", _is_per_channel)

OPTIONS: dict[str, Kind] = {
    **dict.fromkeys(("do_convert_rgb", "do_resize", "do_rescale", "do_normalize", "do_pad", "do_center_crop"), BOOLEAN),
    "default_to_square": BOOLEAN,
    "size": SIZE,
    "crop_size": SIZE,
    "pad_size": SIZE,
    "resample": integer(0, 5),
    "rescale_factor": NUMBER,
    "image_mean": PER_CHANNEL,
    "image_std": PER_CHANNEL,
    "patch_size": PIXELS,
    "max_num_patches": COUNT,
}
FILE: dict[str, Kind] = OPTIONS | dict.fromkeys(
    ("image_processor_type", "feature_extractor_type", "processor_class"), TEXT
)
