"""The base class of the image processors: options, files and the loading of images.

Mirrors those parts of the image processor base classes in `transformers` that SigLIP uses.
"""

import json
import os
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import PIL.Image

from siglip_jax import _hub as hub
from siglip_jax._checks import refuse_unknown
from siglip_jax._fields import check_fields
from siglip_jax._files import naming, output_path, read_json, write_atomically
from siglip_jax.processing.batch import Batch
from siglip_jax.processing.images import open_clip, pixels, timm
from siglip_jax.processing.images.depth import is_deep
from siglip_jax.processing.images.inputs import as_array, is_array, is_one_image
from siglip_jax.processing.images.kinds import FILE
from siglip_jax.processing.images.loading import load_image
from siglip_jax.processing.images.options import ImageOptions

CONFIG = "preprocessor_config.json"
PROCESSOR_CONFIG = "processor_config.json"
CALLS_OWN = ("data_format", "return_tensors")  # a file does not choose the form of the result, the caller does

Loaded = PIL.Image.Image | pixels.Pixels
P = TypeVar("P", bound="ImageProcessor")


class ImageProcessor:
    """Base class that stores options as attributes; each subclass implements `preprocess`.

    An assignment such as `processor.size = (384, 384)` changes the option for the calls that follow. What a step needs
    is checked by the call, so that several options may be assigned one after the other.

    Attributes:
      model_input_names: names of the arrays that `preprocess` returns.
      defaults: default value of each option, by name; it defines which options exist.
      file_type: value of `image_processor_type` in the files.
      processor_type: value of `processor_class` in the files of a `SiglipProcessor` with this image processor.
    """

    model_input_names: ClassVar[list[str]]
    defaults: ClassVar[Mapping[str, Any]]
    file_type: ClassVar[str]
    processor_type: ClassVar[str]

    def __init__(self, **options: Any) -> None:
        """Stores the options.

        Args:
          **options: values of the options in `defaults`; None switches a step off or leaves a value unset, except that
            of `do_convert_rgb`, which published files hold for models that accept nothing but RGB: it means the
            default.

        Raises:
          ValueError: for an unknown option, an invalid value, or a step that lacks a value.
        """
        refuse_unknown(options, self.defaults, type(self).__name__)
        given = {name: value for name, value in options.items() if value is not None or name != "do_convert_rgb"}
        self._options = self._spelled({**self.defaults, **given})
        self._check(self._options)
        self._unknown_settings: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        """Returns the value of an option."""
        options = self.__dict__.get("_options", {})
        if name in options:
            return options[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __repr__(self) -> str:
        """Returns the call that makes such a processor, with the options that are not the defaults."""
        usual = self._spelled(dict(self.defaults))
        pairs = [(name, _as_text(value)) for name, value in self._options.items()]
        changed = [f"{name}={text}" for name, text in pairs if text != _as_text(usual[name])]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an option."""
        if name.startswith("_") or hasattr(type(self), name):
            super().__setattr__(name, value)
            return
        refuse_unknown([name], self.defaults, type(self).__name__)
        self._options = self._spelled({**self._options, name: value})

    def __call__(self, images: Any, **options: Any) -> Batch:
        """Calls `preprocess`.

        Args:
          images: an image or a list of images, each anything that `load_image` accepts, or an array with a leading
            axis of images.
          **options: values that replace those of the processor for this call only.

        Returns:
          A `Batch` of the arrays named in `model_input_names`.

        Raises:
          FileNotFoundError: if a path or URL does not exist.
          ValueError: for a value that is not an image, or an invalid option.
        """
        return self.preprocess(images, **options)

    @abstractmethod
    def preprocess(self, images: Any, **options: Any) -> Batch:
        """Returns the model inputs of one image or several.

        Args:
          images: an image or a list of images, each anything that `load_image` accepts, or an array with a leading
            axis of images.
          **options: values that replace those of the processor for this call only.

        Returns:
          A `Batch` of the arrays named in `model_input_names`.
        """

    def _spelled(self, options: dict[str, Any]) -> dict[str, Any]:
        """Returns a full set of options in the form they are stored in; raises a ValueError for a wrong size."""
        return options

    def _check(self, options: dict[str, Any]) -> None:
        """Raises a ValueError for an invalid option, or a step that lacks one it needs."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Returns the options in the form of the reference's files, and the unknown keys of the file they came from."""
        unset = {k for k, v in self._options.items() if v is None and self.defaults[k] is None}
        options = {k: v for k, v in self._options.items() if k not in unset and k not in CALLS_OWN}
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
        if not options.get("default_to_square", True):
            del options["default_to_square"]
        return self._unknown_settings | options | {"image_processor_type": self.file_type}

    @classmethod
    def from_dict(cls: type[P], settings: Mapping[str, Any], **options: Any) -> P:
        """Returns a processor with the options of a dictionary.

        Args:
          settings: options as `to_dict` returns them or as a file of the reference holds them; None means what it
            means to the class. Unknown keys have no effect and are written back by `to_dict`. `data_format` and
            `return_tensors` are ignored: they belong to the caller.
          **options: values that take precedence over those of `settings`.

        Returns:
          A processor of this class.

        Raises:
          ValueError: if `settings` belongs to an image processor whose result has another form (whole images or
            patches), or an option is invalid.
        """
        kind = kind_of(settings) or cls.file_type
        if kind.startswith("Siglip2") != cls.file_type.startswith("Siglip2"):
            whole, patches = "makes whole images", "makes patches"
            what = patches if kind.startswith("Siglip2") else whole
            raise ValueError(f"image_processor_type must be {cls.file_type}, got {kind}, which {what}")
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
        """Returns the image processor of a directory, file or Hub repository.

        The options are read from `processor_config.json` (`transformers` 5) if it holds them, else from
        `preprocessor_config.json`.

        Args:
          name_or_path: path of a directory or of one such file, or a Hub name such as
            "google/siglip-base-patch16-224".
          revision: branch, tag or commit of a Hub repository; None: its `main`. A local path has none.
          local_files_only: whether to use only files in the local Hub cache and make no request.
          **options: values that take precedence over those of the file.

        Returns:
          An image processor of this class.

        Raises:
          FileNotFoundError: if there is no such path or repository, or neither file is in it.
          ValueError: if a file is not a JSON object, its options are invalid, or they belong to an image processor
            whose result has another form.
        """
        path = hub.resolve(name_or_path, revision=revision, local_files_only=local_files_only)
        file, settings = read_settings(path)
        return cls.from_file(file, settings, **options)

    @classmethod
    def from_file(cls: type[P], file: Path, settings: Mapping[str, Any], **options: Any) -> P:
        """Returns a processor with the options of a file, which errors of these options name.

        Args:
          file: the file.
          settings: options in it.
          **options: values that take precedence over those of the file.

        Returns:
          A processor of this class.

        Raises:
          ValueError: if the options belong to an image processor whose result has another form, or are invalid.
        """
        with naming(file):
            processor = cls.from_dict(settings)
        return cls.from_dict(settings, **options) if options else processor

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes `preprocessor_config.json`, which `transformers` 4 and 5 read.

        Args:
          save_directory: path of the directory; it is created if missing.
        """
        directory = output_path(save_directory, "save_directory")
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        write_atomically(directory / CONFIG, text.encode())


def _as_text(value: Any) -> str:
    """Returns the value of an option as Python writes it; a list, as in files, is written as a tuple."""
    return repr(value) if isinstance(value, str) else str(tuple(value) if isinstance(value, list) else value)


def read_settings(path: Path) -> tuple[Path, dict[str, Any]]:
    """Returns the file of an image processor and its options; the nested form of version 5 takes precedence.

    A directory of open_clip as published has the options in its `open_clip_config.json`, one of timm in `config.json`.

    Args:
      path: directory or file that holds the options.

    Raises:
      FileNotFoundError: if no file holds them.
      ValueError: if a file is not a JSON object, or an option in it is of another type.
    """
    files = [path] if path.is_file() else [path / PROCESSOR_CONFIG, path / CONFIG, path / open_clip.CONFIG]
    for file in files:
        if file.is_file() and file.name == open_clip.CONFIG:
            with naming(file):
                return file, open_clip.settings_of(read_json(file, "it holds the preprocessing of images"))
        if file.is_file():
            settings = read_json(file, "it holds the options of the image processor")
            nested = isinstance(settings.get("image_processor"), dict)
            if nested or file.name != PROCESSOR_CONFIG:
                settings = settings["image_processor"] if nested else settings
                check_fields(file, settings, FILE)
                return file, settings
    file = path / timm.CONFIG
    if file.is_file() and timm.is_timm(d := read_json(file, "it holds the preprocessing of images")):
        with naming(file):
            return file, timm.settings_of(d)
    raise FileNotFoundError(f"{path}: no {CONFIG}, and no {PROCESSOR_CONFIG} with an image processor in it")


def kind_of(settings: Mapping[str, Any]) -> str | None:
    """Returns the class name of the image processor in the settings of a file; None if they have none."""
    kind = settings.get("image_processor_type", settings.get("feature_extractor_type"))
    return None if kind is None else str(kind)


def flat(images: Any) -> list[Any]:
    """Returns the images of nested lists, or of arrays with a leading axis of images, as one flat list."""
    if isinstance(images, (list, tuple)):
        if not images:
            raise ValueError("images must hold at least one image, got an empty list")
        return [image for group in images for image in flat(group)]
    if is_array(images) and not is_one_image(images):
        return flat(list(as_array(images)))
    return [images]


def as_image(image: Any, o: ImageOptions) -> Loaded:
    """Returns one image as a PIL image in RGB, or as an HWC array if it is an array or is not converted to RGB."""
    if is_array(image):
        array = pixels.channels_last(as_array(image), o.input_data_format)
        floats = np.issubdtype(array.dtype, np.floating)
        if (floats or array.dtype == bool) and o.rescale_factor not in (None, 1.0) and 0 < array.max() <= 1:
            kind = "floats in [0, 1]" if floats else "bools"
            raise ValueError(
                f"image must have values in [0, 255] with do_rescale=True, got {kind}; pass do_rescale=False"
            )
        return pixels.rgb_array(array) if o.do_convert_rgb else array
    loaded = image if isinstance(image, PIL.Image.Image) else load_image(image)
    if is_deep(loaded):
        warnings.warn(
            f"a PIL image of mode {loaded.mode} is clipped to 0 to 255, as in the reference; pass"
            " siglip_jax.load_image(image) to scale it",
            stacklevel=2,
        )
    if o.do_convert_rgb:
        return pixels.rgb_pil(loaded)
    array = np.asarray(loaded)
    return array[:, :, None] if array.ndim == 2 else array
