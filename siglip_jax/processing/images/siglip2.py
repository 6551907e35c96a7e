"""Image processor of the SigLIP 2 models of variable resolution; mirrors `transformers.Siglip2ImageProcessorPil`.

Each image keeps its proportions, to within a patch: it is resized to the largest grid of whole patches that
`max_num_patches` allows, cut into patches, and padded with zeros to that number. All values equal the reference's bit
for bit. It differs from it in these: grey and transparent images become RGB unless told otherwise, where the
reference makes patches that no model takes; whole numbers are int32; without `do_resize` an image that is not whole
patches, or too many, is refused in one line. Pillow does the work: the grids are as many as the forms of images, and
a program for an accelerator would be compiled for each.
"""

import math
from collections.abc import Sequence
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
_EPSILON = 1e-5  # how finely the reference searches for the scale


class Siglip2ImageProcessor(ImageProcessor):
    """Makes patches; attributes are the options, see `siglip_jax.processing.images.siglip2.DEFAULTS`."""

    model_input_names = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]
    defaults = DEFAULTS
    file_type = "Siglip2ImageProcessor"
    processor_type = "Siglip2Processor"

    def preprocess(self, images: Any, **options: Any) -> Batch:
        """Makes all that the model takes of one image or several.

        Args:
          images: anything `load_image` takes, a list of such (nested lists are flattened), or an array with a leading
            axis of images.
          **options: override those of the processor for this call; None is False or nothing here.

        Returns:
          `pixel_values` of shape (images, max_num_patches, patch_size * patch_size * channels) float32, the pixels of a
          patch by row, column, channel; `pixel_attention_mask` (images, max_num_patches) int32, 1 for a patch and 0 for
          padding; `spatial_shapes` (images, 2) int32, rows and columns of patches. Lists with `return_tensors=None`.

        Raises:
          FileNotFoundError: for a path or URL where there is nothing.
          ValueError: for anything that is not an image, and for images that do not make patches.
        """
        refuse_unknown(options, DEFAULTS, type(self).__name__)
        settings = self._options | options
        o, patch, most = _checked(settings)
        resample = o.resample if settings["do_resize"] else None
        patches, grids = [], []
        for image in flat(images):
            array = _in_patches(as_image(image, o), patch, most, resample)
            grids.append(array.shape[:2])
            flattened = array.reshape(len(array) * array.shape[1], patch * patch, array.shape[-1])
            done = pixels.normalize(flattened, o.rescale_factor, o.image_mean, o.image_std)
            patches.append(done.reshape(len(done), -1))
        return _stacked(patches, grids, most, o.return_tensors)

    def _checked_spelling(self, options: dict[str, Any]) -> dict[str, Any]:
        _checked(options)
        return options


def grid_of(height: int, width: int, patch_size: int, max_num_patches: int) -> tuple[int, int]:
    """Returns the (rows, columns) of patches for an image of that many pixels: as many as fit, in its proportions.

    Sides are rounded up to whole patches. The scale is searched by halves as in the reference, whose last digits
    decide between neighbouring grids.
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


def _checked(options: dict[str, Any]) -> tuple[ImageOptions, int, int]:
    for name in ("patch_size", "max_num_patches"):
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name}: expected a whole number above 0, found {value!r}")
    resample = 2 if options["resample"] is None else options["resample"]
    shared = {k: v for k, v in options.items() if k in FIXED} | {"resample": resample, "do_resize": False}
    return checked(FIXED | shared), int(options["patch_size"]), int(options["max_num_patches"])


def _in_patches(
    loaded: Loaded, patch: int, most: int, resample: int | None
) -> Shaped[np.ndarray, "rows columns {patch} {patch} channels"]:
    """Returns an image, resized unless `resample` is None, cut into patches."""
    height, width = (loaded.height, loaded.width) if isinstance(loaded, PIL.Image.Image) else loaded.shape[:2]
    if resample is not None:
        rows, columns = grid_of(height, width, patch, most)
        array = pixels.resize(loaded, (rows * patch, columns * patch), resample)
    else:
        rows, columns, array = height // patch, width // patch, np.asarray(loaded)
        if (rows * patch, columns * patch) != (height, width):
            raise ValueError(
                f"image: expected whole patches of {patch} x {patch} pixels with do_resize=False, found {height} x"
                f" {width} pixels; pass do_resize=True"
            )
        if rows * columns > most:
            raise ValueError(
                f"image: expected at most {most} patches with do_resize=False, found {rows} x {columns}; pass"
                " do_resize=True or a larger max_num_patches"
            )
    return array.reshape(rows, patch, columns, patch, array.shape[-1]).transpose(0, 2, 1, 3, 4)


def _stacked(
    patches: list[np.ndarray], grids: Sequence[tuple[int, ...]], most: int, return_tensors: str | None
) -> Batch:
    widths = sorted({array.shape[1] for array in patches})
    if len(widths) > 1:
        raise ValueError(f"images whose patches have {widths} values do not make one array; pass do_convert_rgb=True")
    values = np.zeros((len(patches), most, widths[0]), np.result_type(*patches))
    mask = np.zeros((len(patches), most), np.int32)
    for i, array in enumerate(patches):
        values[i, : len(array)] = array
        mask[i, : len(array)] = 1
    batch = Batch(pixel_values=values, pixel_attention_mask=mask, spatial_shapes=np.array(grids, np.int32))
    if return_tensors is None:
        return Batch({name: list(value) for name, value in batch.items()})
    return Batch({name: jnp.asarray(value) for name, value in batch.items()}) if return_tensors == "jax" else batch
