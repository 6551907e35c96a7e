"""The formats of image files that are read, the endings of their names, and the one place that opens them.

Pillow tries every format that it knows, whatever the name of the file: a PostScript file named `.png` would start
Ghostscript. So the formats are listed, and only those are tried that Pillow decodes itself.
"""

import contextlib
import functools
import io
import struct
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import PIL.Image

from siglip_jax._optional import import_optional
from siglip_jax.processing.images.complete import is_complete

# The first five are those that Pillow knows without loading its other plugins; TGA, which has no magic number, is last.
FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "PPM"),
    *("WEBP", "TIFF", "AVIF", "JPEG2000", "QOI", "PSD", "SGI", "ICO", "DIB", "PCX", "TGA"),
)
HEIF_SUFFIXES = (".heic", ".heics", ".heif", ".heifs", ".hif")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_POSTSCRIPT = (b"%!PS", b"\xc5\xd0\xd3\xc6")
_FILTERS = threading.Lock()  # catch_warnings modifies a list that all threads share


class RefusedImageError(ValueError):
    """Raised for an image that a rule of this package refuses, not Pillow."""


class UnknownFormatError(RefusedImageError):
    """Raised for bytes that are of none of the formats that are read."""


@functools.cache
def image_suffixes() -> tuple[str, ...]:
    """Returns the endings of the names of image files, in lower case with their dot.

    They are those that this installation of Pillow registers for `FORMATS`, and those of HEIF, which needs a package.
    """
    found = {suffix for suffix, format in PIL.Image.registered_extensions().items() if format in {*FORMATS, "MPO"}}
    return tuple(sorted(found | {*HEIF_SUFFIXES}))


def is_image_name(name: str) -> bool:
    """Returns whether a file name or path has the ending of an image."""
    return name.lower().endswith(image_suffixes())


@contextlib.contextmanager
def pillow_quiet() -> Iterator[None]:
    """Silences Pillow's warnings of decompression bombs, for which there is a limit, and of corrupt EXIF data."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def open_image(file: io.BufferedIOBase, max_pixels: int) -> PIL.Image.Image:
    """Opens an encoded image; its pixels are not decoded yet, except for those of an icon.

    Args:
      file: file at its start, which can seek.
      max_pixels: largest number of pixels; Pillow's own limit applies as well.

    Returns:
      The opened image.

    Raises:
      NotInstalledError: if the file is HEIF and its package is not installed.
      RefusedImageError: if the file is of no format in `FORMATS`, is cut short, or has more pixels; the message is
        without the name of the file.
      Exception: whatever Pillow raises for broken data.
    """
    _check_icon(file, max_pixels)
    try:
        with pillow_quiet():
            image = _identified(file)
    except PIL.UnidentifiedImageError:
        raise UnknownFormatError(f"data must be an image that Pillow can read, got {_kind_of(file)}") from None
    except PIL.Image.DecompressionBombError:
        most = min(max_pixels, 2 * (PIL.Image.MAX_IMAGE_PIXELS or max_pixels))
        raise RefusedImageError(f"image must have at most {most} pixels, got more") from None
    _check_pixels(image.width * image.height, max_pixels)
    if not is_complete(image, file):
        raise RefusedImageError("image must be complete, got broken or truncated data (its end is missing)")
    return image


@functools.cache
def _available() -> tuple[str, ...]:
    """Returns those of `FORMATS` that this installation of Pillow can open."""
    PIL.Image.init()
    return tuple(format for format in FORMATS if format in PIL.Image.OPEN)


def _identified(file: Any) -> PIL.Image.Image:
    try:
        return PIL.Image.open(file, formats=_available())
    except PIL.UnidentifiedImageError:
        if not _is_heif(_head(file)):
            raise
    file.seek(0)
    return import_optional("pillow_heif", "an image in HEIF", "heif").HeifImageFile(file)


def _check_pixels(pixels: int, max_pixels: int) -> None:
    if pixels > max_pixels:
        raise RefusedImageError(
            f"image must have at most {max_pixels} pixels, got {pixels}; raise max_pixels to read it"
        )


def _check_icon(file: io.BufferedIOBase, max_pixels: int) -> None:
    """Checks the sizes of all frames of an icon, of which Pillow decodes one as it opens the file."""
    head = _head(file)
    if not head.startswith(b"\0\0\1\0") or len(head) < 6:
        return
    entries = file.read(16 * struct.unpack_from("<H", head, 4)[0])
    for start in range(0, len(entries) - 15, 16):
        file.seek(struct.unpack_from("<I", entries, start + 12)[0])
        frame = file.read(24)
        if frame.startswith(b"\x89PNG") and len(frame) == 24:
            width, height = struct.unpack_from(">II", frame, 16)
        elif len(frame) == 24:  # a bitmap, which holds the mask below the image
            width, height = struct.unpack_from("<Ii", frame, 4)
            height = abs(height) // 2
        else:
            continue
        _check_pixels(width * height, max_pixels)
    file.seek(0)


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def _head(file: io.BufferedIOBase) -> bytes:
    """Returns the first bytes of a file, which is then at the seventh byte."""
    file.seek(0)
    head = file.read(64)
    file.seek(min(6, len(head)))
    return head


def _kind_of(file: io.BufferedIOBase) -> str:
    """Returns what the bytes of a file seem to be, for a message."""
    head = _head(file)
    if not head:
        return "no bytes"
    if head.startswith(_POSTSCRIPT):
        return "PostScript, which only another program can draw; convert it to PNG"
    start = head[:24].decode("ascii", "replace").split("\n")[0].strip()
    readable = start.isprintable() and "\ufffd" not in start and len(start) > 8
    return f"text that begins with {start!r}" if readable else "other bytes"
