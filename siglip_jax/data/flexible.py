"""Converts examples to patches for models of variable resolution: each image keeps its proportions.

Patches stay uint8, and images of any form become arrays of one shape: the patches of an image, row by row, are followed
by zeros up to the length of the sequence.
"""

import copy
import io
from collections.abc import Sequence

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from siglip_jax.data.example import Example
from siglip_jax.data.transform import Row, Transform
from siglip_jax.processing.images import pixels
from siglip_jax.processing.images.base import ImageProcessor
from siglip_jax.processing.images.formats import open_image
from siglip_jax.processing.images.siglip2 import Siglip2ImageProcessor, checked_patches, grid_of


class FlexibleTransform(Transform):
    """Converts examples to the arrays that a model of variable resolution is trained on.

    `stack` returns `pixels`, (rows, length, patch_size * patch_size * 3) uint8, and `spatial_shapes`, (rows, 2) int32,
    the rows and columns of patches of each image. The patches of an image and their order are those of
    `Siglip2ImageProcessor`, and `mean` and `std` hold a number for each value of a patch, so that `normalize_pixels`
    does the processor's last step.

    Attributes:
      length: number of patches that each image is padded to, and the most that it has.
      patch_size: height and width of a patch, in pixels.
    """

    def _take(self, images: ImageProcessor) -> None:
        if not isinstance(images, Siglip2ImageProcessor):
            raise ValueError(
                f"processor must make images of variable resolution, got a {type(images).__name__}; use Transform"
            )
        if not images._options["do_resize"]:
            raise ValueError("the image processor must resize, got do_resize=False")
        self._options, self.patch_size, self.length = checked_patches(images._options)

    def _statistics(self, value: tuple[float, ...]) -> tuple[float, ...]:
        return value * self.patch_size**2

    @property
    def pixels_per_image(self) -> int:
        """Number of pixels of an image in a batch, padding included."""
        return self.length * self.patch_size**2

    def at(self, length: int | None) -> "FlexibleTransform":
        """Returns the transform for sequences of another length; None: this one."""
        if length is None or length == self.length:
            return self
        other = copy.copy(self)
        other.length = length
        return other

    def _resized(self, image: PIL.Image.Image) -> UInt8[np.ndarray, "height width 3"]:
        rows, columns = grid_of(image.height, image.width, self.patch_size, self.length)
        return pixels.resize(image, (rows * self.patch_size, columns * self.patch_size), self._options.resample)

    def _images(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        p = self.patch_size
        found = np.zeros((len(rows), self.length, p * p * 3), np.uint8)
        grids = np.array([(row.pixels.shape[0] // p, row.pixels.shape[1] // p) for row in rows], np.int32)
        for patches, row, (height, width) in zip(found, rows, grids.tolist(), strict=True):
            cells = row.pixels.reshape(height, p, width, p, 3).transpose(0, 2, 1, 3, 4)
            patches[: height * width] = cells.reshape(height * width, -1)
        return {"pixels": found, "spatial_shapes": grids}

    def padding(self, examples: Sequence[Example]) -> float:
        """Returns the share of padding in the sequences of examples, those that cannot be opened left out.

        Args:
          examples: examples whose sizes are looked up; nothing is decoded.

        Returns:
          A number from 0 to 1; 0 if no example can be opened.
        """
        sizes = [size for size in (_size_of(example, self.max_pixels) for example in examples) if size is not None]
        used = [int(np.prod(grid_of(height, width, self.patch_size, self.length))) for height, width in sizes]
        return 1 - sum(used) / (self.length * len(used)) if used else 0.0


def _size_of(example: Example, max_pixels: int) -> tuple[int, int] | None:
    """Returns height and width of an image as stored; a quarter turn changes the number of its patches not at all."""
    try:
        with open_image(io.BytesIO(example.image), max_pixels) as image:
            return image.height, image.width
    except (OSError, ValueError, SyntaxError):
        return None
