"""Image processor of the SigLIP 2 models of variable resolution; mirrors `transformers.Siglip2ImageProcessorPil`.

Each image keeps its proportions to within a patch: it is resized to the largest grid of whole patches that
`max_num_patches` allows, split into patches, and padded with zeros to that number. All values equal the reference's
bit for bit. Differences from the reference: grey and transparent images become RGB by default, where the reference
returns patches that no model accepts; integers are int32; without `do_resize`, an image that is not a grid of whole
patches, or has too many of them, raises a one-line error. Images are resized with Pillow, because every aspect ratio
has its own grid and a program for an accelerator would be compiled for each.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Shaped

from siglip_jax._checks import refuse_unknown
from siglip_jax.processing.batch import Batch
from siglip_jax.processing.images import pixels
from siglip_jax.processing.images.base import ImageProcessor, Loaded, as_image, flat
from siglip_jax.processing.images.options import DEFAULTS as FIXED
from siglip_jax.processing.images.options import ImageOptions, checked

_SHARED = ("do_convert_rgb", "do_resize", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
DEFAULTS: dict[str, Any] = {
    **{name: FIXED[name] for name in (*_SHARED, "input_data_format", "return_tensors")},
    "resample": 2,  # Pillow's number of bilinear
    "patch_size": 16,  # pixels, both sides
    "max_num_patches": 256,
}
_EPSILON = 1e-5  # tolerance of the reference's search for the scale


class Siglip2ImageProcessor(ImageProcessor):
    """Resizes images to a variable number of patches and returns the patches, their mask and their grids.

    Args:
      **options: values of the attributes below, except `model_input_names`; None switches a step off or leaves a
        value unset. The defaults are those of `google/siglip2-base-patch16-naflex`: RGB, up to 256 patches of 16 x 16
        pixels, bilinear, values in [-1, 1].

    Attributes:
      do_convert_rgb: whether images become RGB: grey is repeated, transparency is composited over white.
      do_resize: whether images are resized to the largest grid of whole patches that `max_num_patches` allows.
      resample: Pillow's number of the filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming.
      do_rescale: whether values are multiplied by `rescale_factor`.
      rescale_factor: factor of the values, 1 / 255 for images in [0, 255].
      do_normalize: whether `image_mean` is subtracted and the result divided by `image_std`, after rescaling.
      image_mean: mean of the rescaled values, a number or one per channel.
      image_std: standard deviation of the rescaled values, a number or one per channel, none of them 0.
      patch_size: height and width of a patch, in pixels.
      max_num_patches: number of patches that each image is padded to, and the most that it may have.
      input_data_format: layout of input arrays, "channels_last" or "channels_first"; None: an axis of 1, 3 or 4 holds
        the channels, the first axis before the last, with a warning where both could.
      return_tensors: kind of the result: "np" for numpy arrays, "jax" for JAX arrays, None for lists of numpy arrays.
      model_input_names: names of the arrays that `preprocess` returns.

    Example:
      >>> from siglip_jax.assets import EXAMPLES
      >>> batch = Siglip2ImageProcessor(max_num_patches=64)(EXAMPLES / "horse.png")
      >>> batch.pixel_values.shape, batch.spatial_shapes.tolist()
      ((1, 64, 768), [[8, 8]])
    """

    model_input_names = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]
    defaults = DEFAULTS
    file_type = "Siglip2ImageProcessor"
    processor_type = "Siglip2Processor"

    def preprocess(self, images: Any, **options: Any) -> Batch:
        """Returns the patches, mask and grids of one image or several.

        Args:
          images: an image or a list of images, each anything that `load_image` accepts (nested lists are flattened),
            or an array with a leading axis of images.
          **options: values that replace attributes of the processor for this call only, such as `max_num_patches=1024`;
            None switches a step off or leaves a value unset; it does not mean the default.

        Returns:
          A `Batch` of three arrays, or of lists with one array per image if `return_tensors` is None: `pixel_values`
          (images, max_num_patches, patch_size * patch_size * channels) float32, the pixels of each patch in the order
          row, column, channel; `pixel_attention_mask` (images, max_num_patches) int32, 1 for a patch and 0 for padding;
          `spatial_shapes` (images, 2) int32, the rows and columns of patches.

        Raises:
          FileNotFoundError: if a path or URL does not exist.
          ValueError: for a value that is not an image, an invalid option, and, without `do_resize`, an image that is
            not a grid of whole patches or has more than `max_num_patches`.
        """
        refuse_unknown(options, DEFAULTS, type(self).__name__)
        settings = self._options | options
        o, patch, most = checked_patches(settings)
        resample = o.resample if settings["do_resize"] else None
        patches, grids = [], []
        for image in flat(images):
            array = _in_patches(as_image(image, o), patch, most, resample)
            grids.append(array.shape[:2])
            flattened = array.reshape(len(array) * array.shape[1], patch * patch, array.shape[-1])
            done = pixels.normalize(flattened, o.rescale_factor, o.image_mean, o.image_std)
            patches.append(done.reshape(len(done), -1))
        return _stacked(patches, grids, most, o.return_tensors)

    def _check(self, options: dict[str, Any]) -> None:
        checked_patches(options)


def grid_of(height: int, width: int, patch_size: int, max_num_patches: int) -> tuple[int, int]:
    """Returns the largest grid of patches, (rows, columns), that keeps the proportions of an image.

    Sides are rounded up to whole patches. The scale is found by bisection exactly as in the reference, because its last
    digits decide between neighbouring grids.

    Args:
      height: height of the image, in pixels.
      width: width of the image, in pixels.
      patch_size: height and width of a patch, in pixels.
      max_num_patches: largest number of patches.
    """

    def at(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(side * scale / patch_size)) for side in (height, width))
        return rows, columns

    low, high = _EPSILON / 10, 100.0
    while high - low >= _EPSILON:
        middle = (low + high) / 2
        rows, columns = at(middle)
        if rows * columns <= max_num_patches:
            low = middle
        else:
            high = middle
    return at(low)


def checked_patches(options: Mapping[str, Any]) -> tuple[ImageOptions, int, int]:
    """Returns the options that other processors have too, the patch size in pixels and the largest number of patches.

    Args:
      options: value of each option by name.

    Raises:
      ValueError: if a value is impossible.
    """
    for name in ("patch_size", "max_num_patches"):
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    resample = 2 if options["resample"] is None else options["resample"]
    shared = {k: v for k, v in options.items() if k in FIXED} | {"resample": resample, "do_resize": False}
    return checked(FIXED | shared), int(options["patch_size"]), int(options["max_num_patches"])


def _in_patches(
    loaded: Loaded, patch: int, most: int, resample: int | None
) -> Shaped[np.ndarray, "rows columns {patch} {patch} channels"]:
    """Returns the patches of an image, which is resized first unless `resample` is None."""
    height, width = (loaded.height, loaded.width) if isinstance(loaded, PIL.Image.Image) else loaded.shape[:2]
    if resample is not None:
        rows, columns = grid_of(height, width, patch, most)
        array = pixels.resize(loaded, (rows * patch, columns * patch), resample)
    else:
        rows, columns, array = height // patch, width // patch, np.asarray(loaded)
        if (rows * patch, columns * patch) != (height, width):
            raise ValueError(
                f"image must be whole patches of {patch} x {patch} pixels with do_resize=False, got {height} x"
                f" {width} pixels; pass do_resize=True"
            )
        if rows * columns > most:
            raise ValueError(
                f"image must have at most {most} patches with do_resize=False, got {rows} x {columns}; pass"
                " do_resize=True or a larger max_num_patches"
            )
    return array.reshape(rows, patch, columns, patch, array.shape[-1]).transpose(0, 2, 1, 3, 4)


def _stacked(
    patches: list[np.ndarray], grids: Sequence[tuple[int, ...]], most: int, return_tensors: str | None
) -> Batch:
    widths = sorted({array.shape[1] for array in patches})
    if len(widths) > 1:
        raise ValueError(
            f"images must have one number of channels to be stacked, got patches of {widths} values; pass"
            " do_convert_rgb=True"
        )
    values = np.zeros((len(patches), most, widths[0]), np.result_type(*patches))
    mask = np.zeros((len(patches), most), np.int32)
    for i, array in enumerate(patches):
        values[i, : len(array)] = array
        mask[i, : len(array)] = 1
    batch = Batch(pixel_values=values, pixel_attention_mask=mask, spatial_shapes=np.array(grids, np.int32))
    if return_tensors is None:
        return Batch({name: list(value) for name, value in batch.items()})
    return Batch({name: jnp.asarray(value) for name, value in batch.items()}) if return_tensors == "jax" else batch
