"""Images that a processor may meet: every mode of Pillow, odd sizes, noise and edges."""

import io
import struct
import zlib

import numpy as np
import PIL.Image

MODES = ["RGB", "L", "1", "LA", "RGBA", "P", "P+index", "P+bytes", "PA", "RGB+key", "L+key", "CMYK", "YCbCr", "HSV"]
DEEP = ["I;16", "I", "F"]
MODES += ["LAB", *DEEP, "RGBX"]
SIZES = [(1, 1), (1, 83), (83, 1), (37, 64), (64, 37), (224, 100), (300, 90), (90, 300), (128, 128)]


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9 + i) * np.cos(y / (7 + i)) for i in range(3)]
    return np.uint8(np.round(127.5 + 127.5 * np.stack(waves, -1)))


def edges(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.repeat(np.uint8(255 * (((x // 3 + y // 5) % 2) ^ ((x * y) % 7 == 0)))[..., None], 3, axis=-1)


def picture(mode: str, height: int, width: int, seed: int = 0) -> PIL.Image.Image:
    """Returns an image of noise in a mode, transparent in part where the mode can be."""
    rgb = PIL.Image.fromarray(noise(height, width, seed=seed))
    rgba = PIL.Image.fromarray(noise(height, width, 4, seed=seed))
    base, _, extra = mode.partition("+")
    if extra == "key":
        image = rgb.convert(base)
        image.info["transparency"] = image.getpixel((0, 0))
        return image
    if base == "P":
        image = rgb.convert("P", palette=PIL.Image.Palette.ADAPTIVE, colors=64)
        if extra:
            image.info["transparency"] = 3 if extra == "index" else bytes(range(0, 256, 4))
        return image
    if base == "PA":
        return rgb.convert("P").convert("PA")
    if base in ("I", "I;16", "F"):
        wide = np.random.default_rng(seed).integers(0, 2000, (height, width))
        kind = {"I": np.int32, "I;16": np.uint16, "F": np.float32}[base]
        return PIL.Image.fromarray(wide.astype(kind))
    if base in ("LA", "RGBA"):
        return rgba.convert(base)
    if base == "LAB":
        return PIL.Image.frombytes("LAB", (width, height), rgb.tobytes())
    return rgb.convert(base)


def encoded(image: PIL.Image.Image | np.ndarray, format: str, **options: object) -> bytes:
    """Returns the file of an image or an array in a format of Pillow."""
    buffer = io.BytesIO()
    (PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format, **options)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """Returns a PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )
