"""Image processors of SigLIP: pictures to the float array that the vision tower takes.

`SiglipImageProcessorPil` mirrors `transformers.SiglipImageProcessorPil` and equals it bit for bit.
`SiglipImageProcessor` has the same options and the same values, and resizes and normalises on the accelerator inside
`jax.jit`; the reference's class of that name uses torchvision, which is up to two levels in 255 away from its own PIL
class.

Both differ from the reference in these: the result is NHWC unless `data_format="channels_first"`, and float32 whatever
the input; anything `load_image` takes is an image, grey arrays of two axes too; transparency becomes white however the
picture arrives; a float array in [0, 1] is refused while `do_rescale` would divide it by 255 once more.
"""

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import PIL.Image

from siglip_jax import hub
from siglip_jax.files import read_json, write_atomically
from siglip_jax.processing import pixels, resize
from siglip_jax.processing.batch import Batch, refuse_unknown
from siglip_jax.processing.loading import load_image
from siglip_jax.processing.options import DEFAULTS, ImageOptions, checked, normalized_spelling

CONFIG = "preprocessor_config.json"
PROCESSOR_CONFIG = "processor_config.json"
_CALLS_OWN = ("data_format", "return_tensors")  # a file does not decide what a caller gets

Picture = PIL.Image.Image | pixels.Pixels


class SiglipImageProcessorPil:
    """Resizes with Pillow on the host.

    Attributes are the options; see `siglip_jax.processing.options.DEFAULTS`.
    """

    model_input_names = ["pixel_values"]

    def __init__(self, **options: Any) -> None:
        """Keeps the options; None stands for the default.

        Raises:
          ValueError: for an unknown option, or one that cannot be understood.
        """
        refuse_unknown(options, DEFAULTS, type(self).__name__)
        given = {name: value for name, value in options.items() if value is not None}
        self._options = normalized_spelling(DEFAULTS | given)
        checked(self._options)
        self._unknown_settings: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        options = self.__dict__.get("_options", {})
        if name in options:
            return options[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __call__(self, images: Any, **options: Any) -> Batch:
        """Same as `preprocess`."""
        return self.preprocess(images, **options)

    def preprocess(self, images: Any, **options: Any) -> Batch:
        """Makes `pixel_values` of one image or several.

        Args:
          images: anything `load_image` takes, a list of such (nested lists are flattened), or an array with a leading
            axis of images.
          **options: override those of the processor for this call; None is False or nothing here.

        Returns:
          `pixel_values` of shape (images, height, width, channels) float32; a list of arrays with
          `return_tensors=None`.

        Raises:
          FileNotFoundError: for a path or URL where there is nothing.
          ValueError: for anything that is not an image, and for images that do not make one array.
        """
        refuse_unknown(options, DEFAULTS, type(self).__name__)
        o = checked(self._options | options)
        pictures = [_picture(image, o) for image in _flat(images)]
        done = self._processed(pictures, o)
        if isinstance(done, list) and o.do_pad:
            height, width = o.pad_size or np.max([image.shape[:2] for image in done], axis=0).tolist()
            done = [pixels.pad(image, height, width) for image in done]
        return Batch(pixel_values=_arranged(done, o))

    def _processed(self, pictures: Sequence[Picture], o: ImageOptions) -> Any:
        """Returns the pictures resized, cropped and normalised: one array if that came out so, else a list."""
        arrays = []
        for picture in pictures:
            array = _resized(picture, o) if o.size else np.asarray(picture)
            arrays.append(pixels.center_crop(array, *o.crop_size) if o.crop_size else array)
        if all(a.dtype == np.uint8 and a.shape == arrays[0].shape for a in arrays) and not o.do_pad:
            return pixels.normalize(np.stack(arrays), o.rescale_factor, o.image_mean, o.image_std)
        return [pixels.normalize(a, o.rescale_factor, o.image_mean, o.image_std) for a in arrays]

    def to_dict(self) -> dict[str, Any]:
        """Returns the options as the reference writes them, and what else was in the file they came from."""
        options = {k: v for k, v in self._options.items() if v is not None and k not in _CALLS_OWN}
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
        if not options["default_to_square"]:
            del options["default_to_square"]
        return self._unknown_settings | options | {"image_processor_type": "SiglipImageProcessor"}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], **options: Any) -> "SiglipImageProcessorPil":
        """Makes a processor of what `to_dict`, or a file of the reference, holds; `options` take precedence.

        Raises:
          ValueError: for the options of a processor whose result is of another form.
        """
        kind = settings.get("image_processor_type", settings.get("feature_extractor_type", "SiglipImageProcessor"))
        if str(kind).startswith("Siglip2"):
            raise ValueError(f"image_processor_type: expected SiglipImageProcessor, found {kind}, which makes patches")
        known = {k: v for k, v in settings.items() if k in DEFAULTS and k not in _CALLS_OWN}
        processor = cls(**known | options)
        skipped = {*known, "image_processor_type", "feature_extractor_type", "return_tensors"}
        processor._unknown_settings = {k: v for k, v in settings.items() if k not in skipped}
        return processor

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> "SiglipImageProcessorPil":
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


class SiglipImageProcessor(SiglipImageProcessorPil):
    """Resizes and normalises on the accelerator; the values are those of `SiglipImageProcessorPil`.

    Sizes of images are rounded up to a few steps and batches to powers of two, so that images of any size share a few
    compiled programs. Pictures that are not eight bits of one or three channels go through Pillow.
    """

    def _processed(self, pictures: Sequence[Picture], o: ImageOptions) -> Any:
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        host: list[int] = []
        if o.size is None:
            return super()._processed(pictures, o)
        arrays = [np.asarray(picture) for picture in pictures]
        for i, array in enumerate(arrays):
            if array.dtype == np.uint8 and array.shape[-1] in (1, 3):
                height, width, channels = array.shape
                out = pixels.target_size(height, width, o.size)
                first = resize.vertical_first(height, width, out)
                groups[(first, resize.bucket(height), resize.bucket(width), channels, *out)].append(i)
            else:
                host.append(i)
        if not groups:
            return super()._processed(pictures, o)

        done: list[Any] = [None] * len(arrays)
        steps = (o.rescale_factor, o.image_mean, o.image_std)
        on_device = o.crop_size is None and (o.rescale_factor is not None or o.image_mean is not None)
        chunks = []
        for (_, _, _, channels, *out), members in groups.items():
            table = pixels.normalization_table(*steps, channels) if on_device else None
            for part in resize.powers_of_two(members):
                same = [arrays[i] for i in part]
                chunks.append((part, resize.resize_ragged(same, (out[0], out[1]), o.resample, table)))
        if len(groups) == 1 and on_device and not host and not o.do_pad:
            return chunks[0][1] if len(chunks) == 1 else jnp.concatenate([chunk for _, chunk in chunks])
        for part, chunk in chunks:
            for i, array in zip(part, np.asarray(chunk), strict=True):
                array = pixels.center_crop(array, *o.crop_size) if o.crop_size else array
                done[i] = array if on_device else pixels.normalize(array, *steps)
        for i in host:
            done[i] = super()._processed([pictures[i]], o)[0]
        return done


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


def _flat(images: Any) -> list[Any]:
    if isinstance(images, (list, tuple)):
        if not images:
            raise ValueError("images: expected at least one image, found an empty list")
        return [image for group in images for image in _flat(group)]
    if getattr(images, "ndim", 0) == 4:
        return list(pixels.as_array(images))
    return [images]


def _picture(image: Any, o: ImageOptions) -> Picture:
    """Returns one image as an RGB picture, or as an array HWC where it is one or is not to be converted."""
    if hasattr(image, "__array__") and not isinstance(image, PIL.Image.Image):
        array = pixels.channels_last(pixels.as_array(image), o.input_data_format)
        if np.issubdtype(array.dtype, np.floating) and o.rescale_factor not in (None, 1.0) and 0 < array.max() <= 1:
            raise ValueError(
                "image: a float array in [0, 1] would be divided by 255 once more; pass do_rescale=False, "
                "or values in [0, 255]"
            )
        return pixels.rgb_array(array) if o.do_convert_rgb else array
    picture = load_image(image)
    if o.do_convert_rgb:
        return pixels.rgb_pil(picture)
    array = np.asarray(picture)
    return array[:, :, None] if array.ndim == 2 else array


def _resized(picture: Picture, o: ImageOptions) -> pixels.Pixels:
    height, width = (picture.height, picture.width) if isinstance(picture, PIL.Image.Image) else picture.shape[:2]
    return pixels.resize(picture, pixels.target_size(height, width, o.size or {}), o.resample)


def _arranged(done: Any, o: ImageOptions) -> Any:
    """Returns the finished images stacked, with channels where they are wanted, as the kind of array asked for."""
    first = o.data_format == "channels_first"
    if o.return_tensors is None:
        return [np.ascontiguousarray(np.moveaxis(np.asarray(a), -1, 0)) if first else np.asarray(a) for a in done]
    if isinstance(done, list):
        shapes = sorted({array.shape for array in done})
        if len(shapes) > 1:
            raise ValueError(f"images of the shapes {shapes} do not make one array; pass do_resize=True or do_pad=True")
        done = np.stack(done)
    xnp: Any = np if isinstance(done, np.ndarray) or o.return_tensors == "np" else jnp
    done = xnp.asarray(done)
    if first:
        done = xnp.moveaxis(done, -1, 1)
        done = np.ascontiguousarray(done) if xnp is np else done
    return jnp.asarray(done) if o.return_tensors == "jax" else done
