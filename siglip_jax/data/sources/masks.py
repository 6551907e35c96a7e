"""Images with masks of their classes, for the evaluation of segmentation."""

import io
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from siglip_jax._files import MAX_PIXELS, read_lines
from siglip_jax.data.columns import class_order, listed
from siglip_jax.data.sources.paths import read_file
from siglip_jax.processing.images.formats import open_image
from siglip_jax.processing.images.listing import is_set_aside, list_images

IMAGES, MASKS, NAMES = "images", "masks", "classes.txt"
NONE, IGNORED = 0, 255  # values of pixels without a class, and of those that are not counted
MOST = 254  # classes
_MODES = {"P": np.uint8, "L": np.uint8, "1": np.uint8, "I;16": np.uint16, "I": np.int32}  # of Pillow, of index images


class Masked(NamedTuple):
    """An image with the classes of its pixels.

    Attributes:
      image: bytes of the encoded image file.
      mask: class of each pixel, (height, width): 0 for none, 1 for the first class, 255 for a pixel that is not
        counted; None where the image has no masks.
      name: path of the image relative to the data set, for messages.
    """

    image: bytes
    mask: UInt8[np.ndarray, "height width"] | None
    name: str


class MaskFolder:
    """A folder of images and masks with random access; `open_masks` returns one.

    Attributes:
      classes: names of the classes, whose pixels have the values 1, 2 and so on.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Lists images and masks; none is read.

        Args:
          path: the folder.

        Raises:
          FileNotFoundError: if it, its images or its masks do not exist.
          ValueError: if there are no images, no classes or more than 254, or two images have the same name.
        """
        self.path = Path(path)
        layout = "images/NAME.jpg, and masks/CLASS/NAME.png or masks/NAME.png with classes.txt"
        for folder in (self.path, self.path / IMAGES, self.path / MASKS):
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder}: a data set with masks must be {layout}, got no such folder")
        found, _ = list_images(self.path / IMAGES)
        self._files = {os.path.splitext(name)[0]: name for name in found}
        if not found or len(self._files) != len(found):
            raise ValueError(
                f"{self.path / IMAGES}: images must be one or more of different names, got {len(found)} images of"
                f" {len(self._files)} names; masks are found by the name without its ending"
            )
        self._stems = list(self._files)
        self._by_class = not (self.path / NAMES).is_file()
        if self._by_class:
            folders = [f.name for f in self.path.joinpath(MASKS).iterdir() if f.is_dir() and not is_set_aside(f.name)]
            self.classes = class_order(folders)
        else:
            self.classes = read_lines(self.path / NAMES, "classes")
        if not 1 <= len(self.classes) <= MOST:
            count = len(self.classes)
            raise ValueError(f"{path}: a data set with masks must have 1 to {MOST} classes, as {layout}, got {count}")
        self._warn_of_masks()

    def __len__(self) -> int:
        return len(self._stems)

    def __getitem__(self, index: int) -> Masked:
        """Reads an image and its masks.

        Args:
          index: which one, 0 to `len(self) - 1`.

        Raises:
          OSError, ValueError: if one is unreadable, masks have different sizes or share pixels, or a value is none of
            a class; callers then skip it.
        """
        stem = self._stems[index]
        name = os.path.join(IMAGES, self._files[stem])
        image = read_file(os.fspath(self.path / name), name, name)
        return Masked(image, self._of_classes(stem) if self._by_class else self._of_indices(stem), name)

    def _of_classes(self, stem: str) -> UInt8[np.ndarray, "height width"] | None:
        mask: np.ndarray | None = None
        for value, label in enumerate(self.classes, 1):
            name = os.path.join(MASKS, label, f"{stem}.png")
            if not (self.path / name).is_file():
                continue
            own = _nonzero(self._pixels(name))
            if mask is None:
                mask = np.zeros(own.shape, np.uint8)
            if own.shape != mask.shape:
                raise ValueError(f"{name}: masks of an image must have one size, got {_size(own)} beside {_size(mask)}")
            if (shared := own & (mask != NONE)).any():
                other = self.classes[int(mask[shared][0]) - 1]
                raise ValueError(f"{name}: a pixel must have one class, got {int(shared.sum())} that {other!r} has too")
            mask[own] = value
        return mask

    def _of_indices(self, stem: str) -> UInt8[np.ndarray, "height width"]:
        name = os.path.join(MASKS, f"{stem}.png")
        pixels = self._pixels(name)
        if pixels.ndim != 2:
            channels = pixels.shape[2]
            raise ValueError(f"{name}: a mask must hold one number a pixel, got {channels} channels; save indices")
        wrong = (pixels != IGNORED) & ((pixels < 0) | (pixels > len(self.classes)))
        if wrong.any():
            raise ValueError(
                f"{name}: values must be 0 for none, 1 to {len(self.classes)} for the lines of {NAMES}, or {IGNORED}"
                f" for those to ignore, got {int(pixels[wrong][0])}"
            )
        return pixels.astype(np.uint8)

    def _pixels(self, name: str) -> Integer[np.ndarray, "height width *channels"]:
        """Returns the stored numbers of a mask: no palette is applied, and nothing is scaled."""
        data = read_file(os.fspath(self.path / name), name, name)
        try:
            image = open_image(io.BytesIO(data), MAX_PIXELS)
            kind = _MODES.get(image.mode)
            return np.asarray(image if kind else image.convert("RGB"), kind)
        except MemoryError:
            raise
        except Exception as error:  # whatever Pillow raises for broken data
            raise ValueError(f"{name}: the mask must be a PNG, got one that cannot be read ({error})") from error

    def _warn_of_masks(self) -> None:
        """Warns of masks that belong to no image."""
        folders = [self.path / MASKS / label for label in self.classes] if self._by_class else [self.path / MASKS]
        left = [
            os.path.relpath(folder / name, self.path)
            for folder in folders
            for name in list_images(folder)[0]
            if os.path.splitext(name)[0] not in self._files or not name.endswith(".png")
        ]
        if left:
            count = f"{len(left):,} masks are left out, of no image or not named NAME.png"
            warnings.warn(f"{self.path}: {count}: {listed(left, 5)}", stacklevel=4)


def open_masks(path: str | os.PathLike[str]) -> MaskFolder:
    """Opens a folder of images with masks of their classes.

    The folder has `images/NAME.jpg` (or any other format) and either of two kinds of masks, which are PNG files of the
    size of their image:

    - `masks/CLASS/NAME.png`, one for each class that the image has: pixels other than zero are of the class.
    - `masks/NAME.png` beside `classes.txt` with the name of a class on each line: the value of a pixel is 0 for no
      class, 1 for the first line, 2 for the second, and 255 for a pixel that is not counted. Palettes do not matter.

    Args:
      path: the folder.

    Returns:
      The images with their masks, with random access, and `classes`, the names of the classes.

    Raises:
      FileNotFoundError: if the folder, its images or its masks do not exist.
      ValueError: if there are no images, no classes or more than 254, or two images have the same name.

    Example:
      >>> import shutil, tempfile
      >>> import PIL.Image
      >>> from siglip_jax.assets import EXAMPLES
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for name in ("images", "masks/horse"):
      ...         Path(folder, name).mkdir(parents=True)
      ...     _ = shutil.copy(EXAMPLES / "horse.png", Path(folder, "images"))
      ...     PIL.Image.new("1", (64, 64), 1).save(Path(folder, "masks/horse/horse.png"))
      ...     source = open_masks(folder)
      ...     source.classes, source[0].name, source[0].mask.mean()
      (('horse',), 'images/horse.png', np.float64(1.0))
    """
    return MaskFolder(path)


def _nonzero(pixels: Integer[np.ndarray, "height width *channels"]) -> Bool[np.ndarray, "height width"]:
    return np.asarray(pixels.any(axis=2) if pixels.ndim == 3 else pixels != 0)


def _size(mask: np.ndarray) -> str:
    return f"{mask.shape[1]} x {mask.shape[0]}"
