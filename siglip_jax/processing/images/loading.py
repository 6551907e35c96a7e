"""Loads one image from a path, bytes, a URL, a data URI, an array or a PIL image.

Replaces `transformers.image_utils.load_image`. Differences from it: transparency is kept, so that the processor
composites it over white for every kind of source (the reference drops it for files); bytes, pixels and time are
limited; bytes and arrays are accepted; images of more than eight bits per channel are scaled, where the reference clips
them; every error is one line that names the source. An animation yields its first frame.
"""

import base64
import binascii
import http.client
import io
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

from siglip_jax.processing.images.depth import eight_bits, pil_image, white_of
from siglip_jax.processing.images.inputs import is_array

IMAGE_SUFFIXES = (
    ".avif",
    ".bmp",
    ".gif",
    ".jfif",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
MAX_BYTES = 100 * 2**20
MAX_PIXELS = 178_956_970  # the limit at which Pillow raises an error: twice its MAX_IMAGE_PIXELS
_CHUNK = 2**16
_FILTERS = threading.Lock()  # catch_warnings modifies a list that all threads share


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
      source: a path, `bytes`, an http or https URL, a base64 `data:` URI, a PIL image, or an array HW, HWC or CHW of
        any library. The type of an array decides its range: floats are in [0, 1], bools black and white, uint16 in
        [0, 65535] and other integers in [0, 255].
      timeout: largest duration of a download, in seconds.
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
        return _decoded(_download(source, timeout, max_bytes), source, max_pixels)
    if isinstance(source, (str, os.PathLike)):
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
            f"{name}: data must have at most {max_bytes} bytes, got at least {len(data)}; raise max_bytes if you trust"
            " the source"
        )
    return data


def _from_path(path: Path, max_bytes: int, max_pixels: int) -> PIL.Image.Image:
    """Returns the image in a file."""
    if path.is_dir():
        raise ValueError(f"{path}: image must be a file, got a directory")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise ValueError(
                    f"{path}: file must have at most {max_bytes} bytes, got {size}; raise max_bytes to read it"
                )
            return _decoded(file, str(path), max_pixels)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error


def _decoded(data: bytes | bytearray | BinaryIO, name: str, max_pixels: int) -> PIL.Image.Image:
    """Returns the fully decoded, upright image of encoded data."""
    try:
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of decompression bombs from half of the limit below
            image = PIL.Image.open(io.BytesIO(data) if isinstance(data, (bytes, bytearray)) else data)
        pixels = image.width * image.height
        if pixels <= max_pixels:
            image.load()
    except PIL.UnidentifiedImageError:
        raise ValueError(f"{name}: data must be an image that Pillow can read, got other bytes") from None
    except PIL.Image.DecompressionBombError:
        most = min(max_pixels, MAX_PIXELS)
        raise ValueError(f"{name}: image must have at most {most} pixels, got more") from None
    except Exception as error:  # Pillow's decoders raise exceptions of many types
        cause = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: image must be complete, got broken or truncated data ({cause})") from error
    if pixels > max_pixels:
        raise ValueError(
            f"{name}: image must have at most {max_pixels} pixels, got {pixels}; raise max_pixels to read it"
        )
    try:
        upright = eight_bits(_upright(image), white_of(image))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    # A frame of an animation still refers to its file, which is closed by now.
    return upright.copy() if upright is image and getattr(image, "is_animated", False) else upright


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Returns the image turned as its EXIF orientation says; an upright image is returned unchanged."""
    try:
        turned = image.getexif().get(PIL.ExifTags.Base.Orientation, 1) != 1
        return PIL.ImageOps.exif_transpose(image) if turned else image  # it copies upright images
    except Exception:  # the EXIF data is unreadable, the image itself is complete
        return image


def _data_uri(source: str) -> bytes:
    """Returns the bytes of a base64 data URI."""
    head, comma, body = source.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError("only base64 is supported")
        return base64.b64decode(urllib.parse.unquote(body), validate=True)
    except (ValueError, binascii.Error) as error:
        raise ValueError(
            f"data URI must be 'data:image/...;base64,' and valid base64, got {head[:40]!r} ({error})"
        ) from error


def _opener() -> urllib.request.OpenerDirector:
    """Returns an opener of http and https only; urllib's default opener would also follow a redirect to ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _download(url: str, timeout: float, max_bytes: int) -> bytes:
    """Returns the contents of a URL; the timeout covers the whole download, not single reads."""
    scheme = url.split("://", 1)[0].lower()
    if scheme not in ("http", "https"):
        raise ValueError(f"{url}: URL must be http or https, got {scheme}")
    deadline = time.monotonic() + timeout
    data = bytearray()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "siglip_jax"})
        with _opener().open(request, timeout=timeout) as response:
            while chunk := response.read1(_CHUNK):
                data += chunk
                _limited(data, max_bytes, url)
                if time.monotonic() > deadline:
                    raise TimeoutError
    except urllib.error.HTTPError as error:
        error.close()
        kind = FileNotFoundError if error.code in (404, 410) else ValueError
        raise kind(f"{url}: the server answered {error.code} {error.reason}") from None
    except TimeoutError:
        raise ValueError(f"{url}: took longer than {timeout} seconds; raise timeout to wait longer") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise ValueError(f"{url}: took longer than {timeout} seconds; raise timeout to wait longer") from None
        cause = " ".join(str(reason).split()) or type(error).__name__
        raise ValueError(f"{url}: cannot be downloaded ({cause})") from error
    return bytes(data)
