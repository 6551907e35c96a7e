"""Image processors of SigLIP: images to the float array that the vision tower takes.

`SiglipImageProcessorPil` mirrors `transformers.SiglipImageProcessorPil` and equals it bit for bit.
`SiglipImageProcessor` has the same options and the same values, and resizes and normalises on the accelerator inside
`jax.jit`; the reference's class of that name uses torchvision, which is up to two levels in 255 away from its own PIL
class.

Both differ from the reference in these: the result is NHWC unless `data_format="channels_first"`, and float32 whatever
the input; anything `load_image` takes is an image, grey arrays of two axes too; transparency becomes white however the
image arrives; a float array in [0, 1] is refused while `do_rescale` would divide it by 255 once more.
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
    """Resizes with Pillow on the host.

    Attributes are the options; see `siglip_jax.processing.images.options.DEFAULTS`.
    """

    model_input_names = ["pixel_values"]
    defaults = DEFAULTS
    file_type = "SiglipImageProcessor"
    processor_type = "SiglipProcessor"

    def _checked_spelling(self, options: dict[str, Any]) -> dict[str, Any]:
        spelled = normalized_spelling(options)
        checked(spelled)
        return spelled

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
        loaded = [as_image(image, o) for image in flat(images)]
        done = self._processed(loaded, o)
        if isinstance(done, list) and o.do_pad:
            height, width = o.pad_size or np.max([image.shape[:2] for image in done], axis=0).tolist()
            done = [pixels.pad(image, height, width) for image in done]
        return Batch(pixel_values=_arranged(done, o))

    def _processed(self, loaded: Sequence[Loaded], o: ImageOptions) -> Any:
        """Returns the images resized, cropped and normalised: one array if that came out so, else a list."""
        arrays = []
        for one in loaded:
            array = _resized(one, o) if o.size else np.asarray(one)
            arrays.append(pixels.center_crop(array, *o.crop_size) if o.crop_size else array)
        if all(a.dtype == np.uint8 and a.shape == arrays[0].shape for a in arrays) and not o.do_pad:
            return pixels.normalize(np.stack(arrays), o.rescale_factor, o.image_mean, o.image_std)
        return [pixels.normalize(a, o.rescale_factor, o.image_mean, o.image_std) for a in arrays]


class SiglipImageProcessor(SiglipImageProcessorPil):
    """Resizes and normalises on the accelerator; the values are those of `SiglipImageProcessorPil`.

    Sizes of images are rounded up to a few steps and batches to powers of two, so that images of any size share a few
    compiled programs. Images that are not eight bits of one or three channels go through Pillow.
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
