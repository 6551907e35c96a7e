"""What counts as one image, and what as several: the same test for the engine, the batcher and the image processors."""

import os
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Shaped

_ENCODED = str | bytes | bytearray | memoryview | os.PathLike
_NO_NUMBERS = "OSUMm"  # kinds of numpy dtypes: objects, strings and dates


@runtime_checkable
class Convertible(Protocol):
    """An array that numpy converts, such as one of JAX or torch."""

    def __array__(self, *arguments: Any, **options: Any) -> np.ndarray:
        """Returns the array as a numpy array."""
        ...


@runtime_checkable
class Exchangeable(Protocol):
    """An array that hands over its memory by the DLPack protocol."""

    def __dlpack__(self, *arguments: Any, **options: Any) -> Any:
        """Returns the memory of the array."""
        ...


def is_array(source: object) -> bool:
    """Returns whether `source` is an array of any library: numpy, JAX, torch, or an object with their protocols."""
    return isinstance(source, Convertible | Exchangeable) and not isinstance(source, _ENCODED | PIL.Image.Image)


def as_array(source: Any) -> Shaped[np.ndarray, "..."]:
    """Returns an array of any library as a numpy array; floats that numpy does not have become float32.

    Raises:
      ValueError: if the array cannot be read in host memory.
    """
    try:
        if hasattr(source, "detach"):  # a torch tensor, perhaps with a gradient or on an accelerator
            source = source.detach().cpu()
            source = source.float() if "bfloat16" in str(source.dtype) else source
        array = np.asarray(source) if isinstance(source, Convertible) else np.from_dlpack(source)
    except (TypeError, RuntimeError, BufferError) as error:
        cause = " ".join(str(error).split())
        raise ValueError(
            f"image must be an array in host memory, got a {type(source).__name__} ({cause}); copy it there"
        ) from error
    return array.astype(np.float32) if array.dtype.kind == "V" and jnp.issubdtype(array.dtype, jnp.floating) else array


def is_one_image(images: object) -> bool:
    """Returns whether `images` is a single image: a path, URL, bytes, PIL image, or an array of at most 3 axes."""
    if isinstance(images, _ENCODED | PIL.Image.Image):
        return True
    if not is_array(images):
        return False
    known: Any = images if hasattr(images, "dtype") and hasattr(images, "ndim") else as_array(images)
    return known.ndim < 4 and getattr(known.dtype, "kind", "f") not in _NO_NUMBERS  # an array of paths is not an image


def as_images(images: object) -> Iterable[object]:
    """Returns an iterable of images for one image or many; an array of 4 axes is a batch of images.

    Raises:
      ValueError: if `images` is neither an image nor an iterable.
    """
    if is_one_image(images):
        return (images,)
    if isinstance(images, Iterable):
        return images
    if is_array(images):
        return as_array(images)
    expected = "an image (path, URL, bytes, PIL image or array) or an iterable of them"
    raise ValueError(f"images must be {expected}, got {type(images).__name__}")
