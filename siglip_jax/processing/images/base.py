"""What the image processors share: their options, their files, and how they take images.

Mirrors the base classes of the image processors in `transformers` as far as SigLIP's use them.
"""

import json
import os
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import PIL.Image

from siglip_jax import _hub as hub
from siglip_jax._checks import refuse_unknown
from siglip_jax._files import read_json, write_atomically
from siglip_jax.processing.batch import Batch
from siglip_jax.processing.images import pixels
from siglip_jax.processing.images.loading import load_image
from siglip_jax.processing.images.options import ImageOptions

CONFIG = "preprocessor_config.json"
PROCESSOR_CONFIG = "processor_config.json"
CALLS_OWN = ("data_format", "return_tensors")  # a file does not decide what a caller gets

Loaded = PIL.Image.Image | pixels.Pixels
P = TypeVar("P", bound="ImageProcessor")


class ImageProcessor:
    """Options that are attributes, and `preprocess`, which each class makes its own.

    Attributes:
      defaults: the options there are.
      file_type: `image_processor_type` in files.
      processor_type: `processor_class` of a processor with one of these.
    """

    model_input_names: ClassVar[list[str]]
    defaults: ClassVar[Mapping[str, Any]]
    file_type: ClassVar[str]
    processor_type: ClassVar[str]

    def __init__(self, **options: Any) -> None:
        """Keeps the options; None stands for the default.

        Raises:
          ValueError: for an unknown option, or one that cannot be understood.
        """
        refuse_unknown(options, self.defaults, type(self).__name__)
        given = {name: value for name, value in options.items() if value is not None}
        self._options = self._checked_spelling({**self.defaults, **given})
        self._unknown_settings: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        options = self.__dict__.get("_options", {})
        if name in options:
            return options[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __call__(self, images: Any, **options: Any) -> Batch:
        """Same as `preprocess`."""
        return self.preprocess(images, **options)

    @abstractmethod
    def preprocess(self, images: Any, **options: Any) -> Batch:
        """Makes the model's inputs of one image or several."""

    def _checked_spelling(self, options: dict[str, Any]) -> dict[str, Any]:
        """Returns a full set of options as they are stored, or raises a ValueError."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Returns the options as the reference writes them, and what else was in the file they came from."""
        options = {k: v for k, v in self._options.items() if v is not None and k not in CALLS_OWN}
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
        if not options.get("default_to_square", True):
            del options["default_to_square"]
        return self._unknown_settings | options | {"image_processor_type": self.file_type}

    @classmethod
    def from_dict(cls: type[P], settings: Mapping[str, Any], **options: Any) -> P:
        """Makes a processor of what `to_dict`, or a file of the reference, holds; `options` take precedence.

        Raises:
          ValueError: for the options of a processor whose result is of another form.
        """
        kind = kind_of(settings) or cls.file_type
        if kind.startswith("Siglip2") != cls.file_type.startswith("Siglip2"):
            whole, patches = "makes whole images", "makes patches"
            what = patches if kind.startswith("Siglip2") else whole
            raise ValueError(f"image_processor_type: expected {cls.file_type}, found {kind}, which {what}")
        known = {k: v for k, v in settings.items() if k in cls.defaults and k not in CALLS_OWN}
        processor = cls(**known | options)
        skipped = {*known, "image_processor_type", "feature_extractor_type", "return_tensors"}
        processor._unknown_settings = {k: v for k, v in settings.items() if k not in skipped}
        return processor

    @classmethod
    def from_pretrained(
        cls: type[P],
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> P:
        """Reads `processor_config.json` or `preprocessor_config.json`, whichever holds the options.

        Raises:
          FileNotFoundError: if neither is there.
          ValueError: if the file cannot be made sense of.
        """
        path = hub.resolve(name_or_path, revision=revision, local_files_only=local_files_only)
        return cls.from_dict(read_settings(path), **options)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes `preprocessor_config.json`, which versions 4 and 5 of the reference read."""
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        write_atomically(directory / CONFIG, text.encode())


def read_settings(path: Path) -> dict[str, Any]:
    """Returns the options of an image processor in a directory or file; the nested form of version 5 goes first.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if the file is not a JSON object.
    """
    files = [path] if path.is_file() else [path / PROCESSOR_CONFIG, path / CONFIG]
    for file in files:
        if file.is_file():
            settings = read_json(file, "it holds the options of the image processor")
            if isinstance(settings.get("image_processor"), dict):
                return settings["image_processor"]
            if file.name != PROCESSOR_CONFIG:
                return settings
    raise FileNotFoundError(f"{path}: no {CONFIG}, and no {PROCESSOR_CONFIG} with an image processor in it")


def kind_of(settings: Mapping[str, Any]) -> str | None:
    """Returns the class of image processor that a file names, if it names one."""
    kind = settings.get("image_processor_type", settings.get("feature_extractor_type"))
    return None if kind is None else str(kind)


def flat(images: Any) -> list[Any]:
    """Returns the images of lists in lists, or of an array with a leading axis, as one list."""
    if isinstance(images, (list, tuple)):
        if not images:
            raise ValueError("images: expected at least one image, found an empty list")
        return [image for group in images for image in flat(group)]
    if getattr(images, "ndim", 0) == 4:
        return list(pixels.as_array(images))
    return [images]


def as_image(image: Any, o: ImageOptions) -> Loaded:
    """Returns one image as an RGB image, or as an array HWC where it is one or is not to be converted."""
    if hasattr(image, "__array__") and not isinstance(image, PIL.Image.Image):
        array = pixels.channels_last(pixels.as_array(image), o.input_data_format)
        if np.issubdtype(array.dtype, np.floating) and o.rescale_factor not in (None, 1.0) and 0 < array.max() <= 1:
            raise ValueError(
                "image: a float array in [0, 1] would be divided by 255 once more; pass do_rescale=False, "
                "or values in [0, 255]"
            )
        return pixels.rgb_array(array) if o.do_convert_rgb else array
    loaded = load_image(image)
    if o.do_convert_rgb:
        return pixels.rgb_pil(loaded)
    array = np.asarray(loaded)
    return array[:, :, None] if array.ndim == 2 else array
