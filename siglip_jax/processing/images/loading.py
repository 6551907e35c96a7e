"""One image from wherever it is: a path, bytes, a URL, a data URI, an array or a PIL image.

Stands for `transformers.image_utils.load_image` and differs from it in these: transparency is kept, so that the
processor composites it on white however the image arrives (the reference drops it from files); size, pixels and
time are limited; bytes and arrays are taken; every failure is one line that names the file. As in the reference, the
orientation a camera wrote is followed for files, bytes and URLs, not for PIL images. Of an animation, the first frame.
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

from siglip_jax.processing.images.pixels import pil_image

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
MAX_PIXELS = 178_956_970  # where Pillow itself refuses, twice its MAX_IMAGE_PIXELS
_CHUNK = 2**16
_FILTERS = threading.Lock()  # catch_warnings changes a list that all threads share


def load_image(
    source: Any, *, timeout: float = 10.0, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS
) -> PIL.Image.Image:
    """Returns the image in the mode it was stored in, alpha included.

    Args:
      source: a path, `bytes`, an http or https URL, a `data:` URI, a PIL image (returned as it is), or an array:
        HW, HWC or CHW, uint8, or float in [0, 1] or [0, 255].
      timeout: seconds a download may take in all.
      max_bytes: the most that a URL or file may hold.
      max_pixels: the most that an image may have; Pillow's own limit of 178,956,970 holds besides.

    Raises:
      FileNotFoundError: for a path or URL where there is nothing.
      ValueError: for anything that is not a whole image within the limits.
    """
    if isinstance(source, PIL.Image.Image):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decoded(_limited(bytes(source), max_bytes, "bytes"), "bytes", max_pixels)
    if isinstance(source, str) and source.startswith("data:"):
        return _decoded(_limited(_data_uri(source), max_bytes, "data URI"), "data URI", max_pixels)
    if isinstance(source, str) and "://" in source:
        return _decoded(_download(source, timeout, max_bytes), source, max_pixels)
    if isinstance(source, (str, os.PathLike)):
        return _from_path(Path(source), max_bytes, max_pixels)
    if hasattr(source, "__array__"):
        return pil_image(source)
    raise ValueError(
        f"image: expected a path, URL, bytes, PIL image or array, found a {type(source).__name__}; "
        "several images go in a list"
    )


def _limited(data: bytes | bytearray, max_bytes: int, name: str) -> bytes | bytearray:
    if len(data) > max_bytes:
        raise ValueError(f"{name}: more than the {max_bytes} bytes allowed; raise max_bytes if it is to be trusted")
    return data


def _from_path(path: Path, max_bytes: int, max_pixels: int) -> PIL.Image.Image:
    if path.is_dir():
        raise ValueError(f"{path}: expected an image file, found a directory")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise ValueError(f"{path}: {size} bytes, more than the {max_bytes} allowed; raise max_bytes to read it")
            return _decoded(file, str(path), max_pixels)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error


def _decoded(data: bytes | bytearray | BinaryIO, name: str, max_pixels: int) -> PIL.Image.Image:
    try:
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the bomb warning comes at half of the limit below
            image = PIL.Image.open(io.BytesIO(data) if isinstance(data, (bytes, bytearray)) else data)
        pixels = image.width * image.height
        if pixels <= max_pixels:
            image.load()
    except PIL.UnidentifiedImageError:
        raise ValueError(f"{name}: not an image, or of a kind that Pillow cannot read") from None
    except PIL.Image.DecompressionBombError:
        raise ValueError(f"{name}: more than the {min(max_pixels, MAX_PIXELS)} pixels allowed") from None
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        cause = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: broken or truncated image ({cause})") from error
    if pixels > max_pixels:
        raise ValueError(f"{name}: {pixels} pixels, more than the {max_pixels} allowed; raise max_pixels to read it")
    try:
        turned = image.getexif().get(PIL.ExifTags.Base.Orientation, 1) != 1
        upright = PIL.ImageOps.exif_transpose(image) if turned else image  # it would copy one that is upright
    except Exception:  # unreadable notes of the camera; the image itself is whole
        upright = image
    # A frame of an animation stays tied to its file, which is closed by now.
    return upright.copy() if upright is image and getattr(image, "is_animated", False) else upright


def _data_uri(source: str) -> bytes:
    head, comma, body = source.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError("only base64 is understood")
        return base64.b64decode(urllib.parse.unquote(body), validate=True)
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"data URI {head[:40]!r}: expected 'data:image/...;base64,' and base64 ({error})") from error


def _opener() -> urllib.request.OpenerDirector:
    """Only http and https, after a redirect too; urllib's own opener would also follow one to ftp."""
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
    scheme = url.split("://", 1)[0].lower()
    if scheme not in ("http", "https"):
        raise ValueError(f"{url}: expected an http or https URL, found {scheme}")
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
