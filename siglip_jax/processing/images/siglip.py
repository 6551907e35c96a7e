"""Image processors of SigLIP, which return the float array that the vision tower expects.

`SiglipImageProcessorPil` mirrors `transformers.SiglipImageProcessorPil` and equals it bit for bit.
`SiglipImageProcessor` has the same options and returns the same values, but resizes and normalises on the accelerator
inside `jax.jit`; the reference's class of that name uses torchvision, whose values differ from those of its own PIL
class by up to 2 of 255 levels.

Differences from the reference: the result is NHWC unless `data_format="channels_first"`, and float32 for every input
dtype; images are anything that `load_image` accepts, including grey arrays of two axes; transparency is composited over
white for every kind of input; an array of floats in [0, 1] or of bools is an error if `do_rescale` would divide it by
255 again; files of more than eight bits are scaled by `load_image`. As in the reference, a PIL image of such a mode is
clipped to 0 to 255 (with a warning), numbers of an array are in [0, 255] whatever its type, and the EXIF orientation of
a PIL image is not applied: `load_image` does all of this, and `Siglip` calls it.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import PIL.Image

from siglip_jax._checks import refuse_unknown
from siglip_jax.processing.batch import Batch
from siglip_jax.processing.images import pixels, resize
from siglip_jax.processing.images.base import ImageProcessor, Loaded, as_image, flat
from siglip_jax.processing.images.options import DEFAULTS, ImageOptions, checked, normalized_spelling


class SiglipImageProcessorPil(ImageProcessor):
    """Resizes, rescales and normalises images on the host with Pillow and numpy.

    Args:
      **options: values of the attributes below, except `model_input_names`; None switches a step off or leaves a
        value unset. The defaults are those of `google/siglip-base-patch16-224`: RGB, 224 x 224 pixels, bicubic, values
        in [-1, 1].

    Attributes:
      do_convert_rgb: whether images become RGB: grey is repeated, transparency is composited over white.
      do_resize: whether images are resized to `size`.
      size: size of the result in pixels: an int, (height, width), or a dictionary with the keys "height" and "width",
        "shortest_edge", "shortest_edge" and "longest_edge", or "max_height" and "max_width". Without both sides,
        images keep their proportions.
      default_to_square: whether an int `size` means a square; False: it means the shortest edge.
      resample: Pillow's number of the filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming.
      do_center_crop: whether images are cropped to the middle `crop_size` after resizing; None: False.
      crop_size: (height, width) in pixels, an int for a square, or a dictionary of "height" and "width"; smaller
        images get black margins.
      do_rescale: whether values are multiplied by `rescale_factor`.
      rescale_factor: factor of the values, 1 / 255 for images in [0, 255].
      do_normalize: whether `image_mean` is subtracted and the result divided by `image_std`, after rescaling.
      image_mean: mean of the rescaled values, a number or one per channel.
      image_std: standard deviation of the rescaled values, a number or one per channel, none of them 0.
      do_pad: whether finished images get zeros below and to the right; None: False.
      pad_size: size to which images are padded, in the forms of `crop_size`; None: the largest height and width of
        the batch.
      data_format: layout of the result: "channels_last" (NHWC) or "channels_first" (NCHW).
      input_data_format: layout of input arrays, "channels_last" or "channels_first"; None: an axis of 1, 3 or 4 holds
        the channels, the first axis before the last, with a warning where both could.
      return_tensors: kind of the result: "np" for a numpy array, "jax" for a JAX array, None for a list of numpy
        arrays.
      model_input_names: names of the arrays that `preprocess` returns.

    Example:
      >>> from siglip_jax.assets import EXAMPLES
      >>> processor = SiglipImageProcessorPil(size=(32, 48))
      >>> processor(EXAMPLES / "horse.png").pixel_values.shape
      (1, 32, 48, 3)
    """

    model_input_names = ["pixel_values"]
    defaults = DEFAULTS
    file_type = "SiglipImageProcessor"
    processor_type = "SiglipProcessor"

    def _spelled(self, options: dict[str, Any]) -> dict[str, Any]:
        return normalized_spelling(options)

    def _check(self, options: dict[str, Any]) -> None:
        checked(options)

    def preprocess(self, images: Any, **options: Any) -> Batch:
        """Returns the `pixel_values` of one image or several.

        Args:
          images: an image or a list of images, each anything that `load_image` accepts (nested lists are flattened),
            or an array with a leading axis of images.
          **options: values that replace attributes of the processor for this call only, such as `size=(384, 384)`;
            None switches a step off or leaves a value unset; it does not mean the default.

        Returns:
          A `Batch` of `pixel_values`, (images, height, width, channels) float32; a list with one array per image if
          `return_tensors` is None. Without rescaling and normalisation the dtype is that of the image, such as uint8.

        Raises:
          FileNotFoundError: if a path or URL does not exist.
          ValueError: for a value that is not an image, an invalid option, and images whose results differ in shape and
            cannot be stacked.

        Example:
          >>> import numpy as np
          >>> images = [np.zeros((20, 30, 3), np.uint8), np.full((40, 10), 255, np.uint8)]
          >>> batch = SiglipImageProcessorPil(size=(16, 16)).preprocess(images)
          >>> batch.pixel_values.shape, batch.pixel_values.min().item(), batch.pixel_values.max().item()
          ((2, 16, 16, 3), -1.0, 1.0)
        """
        refuse_unknown(options, DEFAULTS, type(self).__name__)
        o = checked(self._options | options)
        loaded = [as_image(image, o) for image in flat(images)]
        done = self._processed(loaded, o)
        if isinstance(done, list) and o.do_pad:
            height, width = o.pad_size or np.max([image.shape[:2] for image in done], axis=0).tolist()
            done = [pixels.pad(image, height, width) for image in done]
        return Batch(pixel_values=_arranged(done, o))

    def _processed(self, loaded: Sequence[Loaded], o: ImageOptions) -> Any:
        """Returns the images resized, cropped and normalised, as one array if that needs no copy, else as a list."""
        arrays = []
        for one in loaded:
            array = _resized(one, o) if o.size else np.asarray(one)
            arrays.append(pixels.center_crop(array, *o.crop_size) if o.crop_size else array)
        if all(a.dtype == np.uint8 and a.shape == arrays[0].shape for a in arrays) and not o.do_pad:
            return pixels.normalize(np.stack(arrays), o.rescale_factor, o.image_mean, o.image_std)
        return [pixels.normalize(a, o.rescale_factor, o.image_mean, o.image_std) for a in arrays]


class SiglipImageProcessor(SiglipImageProcessorPil):
    """Resizes and normalises images on the default device, with the values of `SiglipImageProcessorPil`.

    Images are padded to a few sizes and batches are split into powers of two, so that images of any size share a few
    compiled programs. Images that are not 8-bit with one or three channels are resized with Pillow.

    Args:
      **options: values of the attributes below, except `model_input_names`; None switches a step off or leaves a
        value unset. The defaults are those of `google/siglip-base-patch16-224`: RGB, 224 x 224 pixels, bicubic, values
        in [-1, 1].

    Attributes:
      do_convert_rgb: whether images become RGB: grey is repeated, transparency is composited over white.
      do_resize: whether images are resized to `size`.
      size: size of the result in pixels: an int, (height, width), or a dictionary with the keys "height" and "width",
        "shortest_edge", "shortest_edge" and "longest_edge", or "max_height" and "max_width". Without both sides,
        images keep their proportions.
      default_to_square: whether an int `size` means a square; False: it means the shortest edge.
      resample: Pillow's number of the filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming.
      do_center_crop: whether images are cropped to the middle `crop_size` after resizing; None: False.
      crop_size: (height, width) in pixels, an int for a square, or a dictionary of "height" and "width"; smaller
        images get black margins.
      do_rescale: whether values are multiplied by `rescale_factor`.
      rescale_factor: factor of the values, 1 / 255 for images in [0, 255].
      do_normalize: whether `image_mean` is subtracted and the result divided by `image_std`, after rescaling.
      image_mean: mean of the rescaled values, a number or one per channel.
      image_std: standard deviation of the rescaled values, a number or one per channel, none of them 0.
      do_pad: whether finished images get zeros below and to the right; None: False.
      pad_size: size to which images are padded, in the forms of `crop_size`; None: the largest height and width of
        the batch.
      data_format: layout of the result: "channels_last" (NHWC) or "channels_first" (NCHW).
      input_data_format: layout of input arrays, "channels_last" or "channels_first"; None: an axis of 1, 3 or 4 holds
        the channels, the first axis before the last, with a warning where both could.
      return_tensors: kind of the result: "np" for a numpy array, "jax" for a JAX array, None for a list of numpy
        arrays.
      model_input_names: names of the arrays that `preprocess` returns.

    Example:
      >>> from siglip_jax.assets import EXAMPLES
      >>> processor = SiglipImageProcessor(size=(32, 32))
      >>> processor([EXAMPLES / "horse.png", EXAMPLES / "bat.png"], return_tensors="jax").pixel_values.shape
      (2, 32, 32, 3)
    """

    def _processed(self, loaded: Sequence[Loaded], o: ImageOptions) -> Any:
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        host: list[int] = []
        if o.size is None:
            return super()._processed(loaded, o)
        arrays = [np.asarray(one) for one in loaded]
        for i, array in enumerate(arrays):
            if array.dtype == np.uint8 and array.shape[-1] in (1, 3):
                height, width, channels = array.shape
                out = pixels.target_size(height, width, o.size)
                first = resize.vertical_first(height, width, out)
                groups[(first, resize.bucket(height), resize.bucket(width), channels, *out)].append(i)
            else:
                host.append(i)
        if not groups:
            return super()._processed(loaded, o)

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
            done[i] = super()._processed([loaded[i]], o)[0]
        return done


def _resized(one: Loaded, o: ImageOptions) -> pixels.Pixels:
    height, width = (one.height, one.width) if isinstance(one, PIL.Image.Image) else one.shape[:2]
    return pixels.resize(one, pixels.target_size(height, width, o.size or {}), o.resample)


def _arranged(done: Any, o: ImageOptions) -> Any:
    """Returns the finished images stacked, in the layout `data_format` and of the kind `return_tensors`."""
    first = o.data_format == "channels_first"
    if o.return_tensors is None:
        return [np.ascontiguousarray(np.moveaxis(np.asarray(a), -1, 0)) if first else np.asarray(a) for a in done]
    if isinstance(done, list):
        shapes = sorted({array.shape for array in done})
        if len(shapes) > 1:
            raise ValueError(
                f"images must have one shape to be stacked, got the shapes {shapes}; pass do_resize=True or do_pad=True"
            )
        done = np.stack(done)
    xnp: Any = np if isinstance(done, np.ndarray) or o.return_tensors == "np" else jnp
    done = xnp.asarray(done)
    if first:
        done = xnp.moveaxis(done, -1, 1)
        done = np.ascontiguousarray(done) if xnp is np else done
    return jnp.asarray(done) if o.return_tensors == "jax" else done
