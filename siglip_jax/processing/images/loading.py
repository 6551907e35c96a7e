"""Loads one image from a path, bytes, a URL, base64, an array or a PIL image.

Replaces `transformers.image_utils.load_image`. Differences from it: transparency is kept, so that the processor
composites it over white for every kind of source (the reference drops it for files); formats, bytes, pixels and time
are limited; bytes and arrays are accepted; images of more than eight bits per channel are scaled, where the reference
clips them; every error is one line that names the source. An animation yields its first frame.
"""

import base64
import binascii
import contextlib
import errno
import io
import os
import re
import stat
import urllib.parse
from pathlib import Path
from typing import Any

import PIL.ExifTags
import PIL.Image

from siglip_jax._files import MAX_PIXELS
from siglip_jax._optional import NotInstalledError
from siglip_jax.processing.images.depth import eight_bits, pil_image, white_of
from siglip_jax.processing.images.download import download
from siglip_jax.processing.images.formats import RefusedImageError, UnknownFormatError, open_image, pillow_quiet
from siglip_jax.processing.images.inputs import is_array

MAX_BYTES = 100 * 2**20
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_METADATA = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # where an orientation may be noted
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_LONGEST_NAME = 200  # characters of a source in a message


def load_image(
    source: Any,
    *,
    timeout: float = 10.0,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    input_data_format: str | None = None,
) -> PIL.Image.Image:
    """Returns the image of a path, URL, bytes, array or PIL image, in the mode it is stored in, including alpha.

    EXIF orientation is applied. An animation yields its first frame. A grey image of more than eight bits is scaled to
    mode `L` by the range of its type: 0 to 65535 in the modes `I;16` and `I`, 0 to 1 in mode `F`.

    Args:
      source: a path, `bytes`, an http or https URL, base64 with or without `data:image/...;base64,`, a PIL image, or an
        array HW, HWC or CHW of any library. The type of an array decides its range: floats are in [0, 1], bools black
        and white, uint16 in [0, 65535] and other integers in [0, 255].
      timeout: largest duration of a download, in seconds, from the lookup of the name to the last byte.
      max_bytes: largest size of an encoded image, in bytes.
      max_pixels: largest number of pixels of an encoded image; Pillow's own limit of 178,956,970 applies as well.
      input_data_format: layout of an array, "channels_last" or "channels_first"; None: the axis of 1, 3 or 4 holds the
        channels, the last axis before the first.

    Returns:
      A PIL image of eight bits per channel; a PIL image that is so already, and upright, is returned itself.

    Raises:
      FileNotFoundError: if the path or URL does not exist.
      ValueError: if the source is not a complete image within the limits, cannot be read, or has a value outside the
        range of its type.

    Example:
      >>> from siglip_jax.assets import EXAMPLES
      >>> image = load_image(EXAMPLES / "horse.png")
      >>> image.mode, image.size
      ('RGBA', (64, 64))
    """
    if isinstance(source, PIL.Image.Image):
        return eight_bits(_upright(source), white_of(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decoded(_limited(bytes(source), max_bytes, "bytes"), "bytes", max_pixels)
    if isinstance(source, str) and source.startswith("data:"):
        return _decoded(_limited(_data_uri(source), max_bytes, "data URI"), "data URI", max_pixels)
    if isinstance(source, str) and "://" in source:
        return _decoded(download(source, timeout, max_bytes), source, max_pixels)
    if isinstance(source, str):
        return _from_text(source, max_bytes, max_pixels)
    if isinstance(source, os.PathLike):
        return _from_path(Path(source), max_bytes, max_pixels)
    if is_array(source):
        return pil_image(source, input_data_format)
    raise ValueError(
        f"image must be a path, URL, bytes, PIL image or array, got a {type(source).__name__}; "
        "pass several images as a list"
    )


def _limited(data: bytes | bytearray, max_bytes: int, name: str) -> bytes | bytearray:
    """Returns the data; raises a ValueError if it is longer than `max_bytes`."""
    if len(data) > max_bytes:
        raise ValueError(
            f"{name}: data must have at most {max_bytes} bytes, got {len(data)}; raise max_bytes to read it"
        )
    return data


def _from_text(source: str, max_bytes: int, max_pixels: int) -> PIL.Image.Image:
    """Returns the image in a file, or in base64 without a scheme, as the reference reads a string that is no file."""
    try:
        return _from_path(Path(source), max_bytes, max_pixels)
    except FileNotFoundError as missing:
        if not _BASE64.fullmatch(source):
            raise
        try:
            data = base64.b64decode("".join(source.split()), validate=True)
            return _decoded(_limited(data, max_bytes, "base64"), "base64", max_pixels)
        except (binascii.Error, UnknownFormatError):  # the path of a file after all
            raise missing from None


def _from_path(path: Path, max_bytes: int, max_pixels: int) -> PIL.Image.Image:
    """Returns the image in a file."""
    name = str(path) if len(str(path)) <= _LONGEST_NAME else f"{str(path)[:_LONGEST_NAME]}..."
    if "\0" in name:
        raise ValueError(f"image must be the path of a file, got {name!r} with a null byte")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
            raise ValueError(f"{name}: image must be a file, got {kind}")
        if status.st_size > max_bytes:
            raise ValueError(
                f"{name}: file must have at most {max_bytes} bytes, got {status.st_size}; raise max_bytes to read it"
            )
        with path.open("rb") as file:
            return _decoded(file, name, max_pixels)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise FileNotFoundError(f"{name}: no such image file") from None
        raise ValueError(f"{name}: cannot be read ({error.strerror or error})") from error


def _decoded(data: bytes | bytearray | io.BufferedIOBase, name: str, max_pixels: int) -> PIL.Image.Image:
    """Returns the fully decoded, upright image of encoded data."""
    try:
        image = open_image(io.BytesIO(data) if isinstance(data, (bytes, bytearray)) else data, max_pixels)
        image.load()
    except UnknownFormatError as error:
        raise UnknownFormatError(f"{name}: {error}") from None
    except (RefusedImageError, NotInstalledError) as error:
        raise ValueError(f"{name}: {error}") from None
    except Exception as error:  # Pillow's decoders raise exceptions of many types
        cause = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: image must be complete, got broken or truncated data ({cause:.200})") from error
    try:
        upright = eight_bits(_upright(image), white_of(image))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    # A frame of an animation still refers to its file, which is closed by now.
    return upright.copy() if upright is image and _is_animated(image) else upright


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Returns the image turned as its EXIF orientation says; an upright image is returned unchanged."""
    turn = None
    with contextlib.suppress(Exception), pillow_quiet():  # the EXIF data is unreadable, the image itself is complete
        turn = _TURNS.get(image.getexif().get(PIL.ExifTags.Base.Orientation, 1))
    if turn is None:
        return image
    upright = image.transpose(turn)
    for key in _METADATA:  # so that nobody turns it again
        upright.info.pop(key, None)
    return upright


def _is_animated(image: PIL.Image.Image) -> bool:
    """Returns whether a file has several frames, or its further frames are unreadable."""
    with contextlib.suppress(Exception), pillow_quiet():
        return getattr(image, "is_animated", False)
    return True


def _data_uri(source: str) -> bytes:
    """Returns the bytes of a base64 data URI, which may be broken into lines."""
    head, comma, body = source.partition(",")
    try:
        if not comma or not head.strip().lower().endswith(";base64"):
            raise ValueError("only base64 is supported")
        return base64.b64decode("".join(urllib.parse.unquote(body).split()), validate=True)
    except ValueError as error:
        raise ValueError(
            f"data URI must be 'data:image/...;base64,' and valid base64, got {head[:40]!r} ({error})"
        ) from error
