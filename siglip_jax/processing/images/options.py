"""The options of an image processor: names, defaults, accepted forms and checks, as in the reference.

Differences from the reference: `data_format` has an effect and defaults to "channels_last"; the error for an unknown
option names the closest known one; `device` and `disable_grouping` do not exist.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from siglip_jax._checks import check_choice, shown
from siglip_jax._fields import NUMBER
from siglip_jax.processing.images.kinds import PER_CHANNEL

DEFAULTS: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "default_to_square": False,  # whether an int `size` means a square; False: the shortest edge
    "crop_size": None,
    "resample": 3,  # Pillow's number of bicubic
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "do_pad": None,
    "pad_size": None,
    "do_center_crop": None,
    "data_format": "channels_last",
    "input_data_format": None,
    "return_tensors": "np",
}
_SIZE_KEYS = (
    {"height", "width"},
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"longest_edge"},
    {"max_height", "max_width"},
)
_FORMATS = ("channels_first", "channels_last")


class ImageOptions(NamedTuple):
    """The checked options of one call; None stands for a step that is left out.

    Attributes:
      do_convert_rgb: whether images become RGB.
      size: size of the result of resizing, in pixels, by the reference's keys such as "height" and "width".
      resample: Pillow's number of the filter, 0 to 5.
      crop_size: (height, width) of the centre crop, in pixels.
      rescale_factor: factor of the values.
      image_mean: mean that is subtracted after rescaling, a number or one per channel.
      image_std: standard deviation that the difference is divided by, a number or one per channel.
      do_pad: whether images get zeros below and to the right.
      pad_size: (height, width) after padding, in pixels; None: the largest of the batch.
      data_format: layout of the result, "channels_last" or "channels_first".
      input_data_format: layout of input arrays; None: found by the lengths of the axes.
      return_tensors: kind of the result, "np", "jax", or None for lists.
    """

    do_convert_rgb: bool
    size: dict[str, int] | None
    resample: int
    crop_size: tuple[int, int] | None
    rescale_factor: float | None
    image_mean: float | tuple[float, ...] | None
    image_std: float | tuple[float, ...] | None
    do_pad: bool
    pad_size: tuple[int, int] | None
    data_format: str
    input_data_format: str | None
    return_tensors: str | None


def size_dict(name: str, size: Any, *, square: bool = True) -> dict[str, int]:
    """Returns a size as a dictionary of the reference's keys.

    Args:
      name: name of the option, for the error.
      size: an int, (height, width) or such a dictionary.
      square: whether an int means a square; False: it means the shortest edge.

    Raises:
      ValueError: for another type, unknown keys, or numbers below 1.
    """
    if isinstance(size, (int, np.integer)) and not isinstance(size, bool):
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    elif isinstance(size, (tuple, list)) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if not isinstance(size, Mapping) or set(size) not in _SIZE_KEYS:
        forms = " or ".join(" and ".join(sorted(keys)) for keys in _SIZE_KEYS)
        raise ValueError(f"{name} must be an integer, (height, width), or a dictionary of {forms}, got {size!r}")
    if not all(isinstance(n, (int, np.integer)) and n > 0 for n in size.values()):
        raise ValueError(f"{name} must hold integers of at least 1, in pixels, got {dict(size)}")
    return {key: int(n) for key, n in size.items()}


def _rectangle(name: str, size: Any) -> tuple[int, int]:
    """Returns a size of both sides as (height, width)."""
    found = size_dict(name, size)
    if set(found) != {"height", "width"}:
        raise ValueError(f"{name} must have the keys height and width, got {found}")
    return found["height"], found["width"]


def _statistics(name: str, value: Any) -> float | tuple[float, ...]:
    """Returns a mean or standard deviation as one number or a tuple of one per channel."""
    if not PER_CHANNEL.holds(value):
        raise ValueError(f"{name} must be {PER_CHANNEL.name}, got {shown(value)}")
    return tuple(map(float, value)) if isinstance(value, Iterable) else float(value)


def _plain(value: Any) -> str | None:
    """Returns the string of a member of the reference's enumerations, which are accepted too."""
    return None if value is None else str(getattr(value, "value", value))


def checked(options: Mapping[str, Any]) -> ImageOptions:
    """Returns the steps of a full set of options.

    Args:
      options: a value for every name in `DEFAULTS`.

    Raises:
      ValueError: if a step lacks an option that it needs, or an option is invalid.
    """
    o = dict(options)
    for step, *needs in (
        ("do_resize", "size", "resample"),
        ("do_center_crop", "crop_size"),
        ("do_rescale", "rescale_factor"),
        ("do_normalize", "image_mean", "image_std"),
    ):
        for need in needs:
            if o[step] and o[need] is None:
                raise ValueError(f"{need} must have a value with {step}=True, got None")
    resample = 3 if o["resample"] is None else o["resample"]
    if not isinstance(resample, (int, np.integer)) or not 0 <= resample <= 5:
        raise ValueError(f"resample must be one of Pillow's filters, 0 to 5, got {resample!r}")
    data_format, input_format = (_plain(o[name]) for name in ("data_format", "input_data_format"))
    data_format = data_format or "channels_last"
    check_choice("data_format", data_format, _FORMATS)
    check_choice("input_data_format", input_format, (None, *_FORMATS))
    check_choice("return_tensors", o["return_tensors"], (None, "np", "jax"))
    if o["do_rescale"] and not NUMBER.holds(o["rescale_factor"]):
        raise ValueError(f"rescale_factor must be {NUMBER.name}, got {shown(o['rescale_factor'])}")
    mean = _statistics("image_mean", o["image_mean"]) if o["do_normalize"] else None
    std = _statistics("image_std", o["image_std"]) if o["do_normalize"] else None
    if std is not None and 0.0 in (std if isinstance(std, tuple) else (std,)):
        raise ValueError(f"image_std must not contain 0, got {o['image_std']!r}")
    return ImageOptions(
        do_convert_rgb=bool(o["do_convert_rgb"]),
        size=size_dict("size", o["size"], square=bool(o["default_to_square"])) if o["do_resize"] else None,
        resample=int(resample),
        crop_size=_rectangle("crop_size", o["crop_size"]) if o["do_center_crop"] else None,
        rescale_factor=float(o["rescale_factor"]) if o["do_rescale"] else None,
        image_mean=mean,
        image_std=std,
        do_pad=bool(o["do_pad"]),
        pad_size=_rectangle("pad_size", o["pad_size"]) if o["do_pad"] and o["pad_size"] is not None else None,
        data_format=data_format,
        input_data_format=input_format,
        return_tensors=o["return_tensors"],
    )


def normalized_spelling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options with sizes as dictionaries, the form in which they are stored and written to files."""
    out = dict(options)
    if out["size"] is not None:
        out["size"] = size_dict("size", out["size"], square=bool(out["default_to_square"]))
    for name in ("crop_size", "pad_size"):
        if out[name] is not None:
            out[name] = size_dict(name, out[name])
    return out
