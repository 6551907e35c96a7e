"""A folder of some seventy image files that are hard to read, each with what becomes of it."""

import importlib.util
import os
import struct
from pathlib import Path

import numpy as np
import PIL.Image

from tests.support.images import bomb, encoded, picture, smooth

HEIC = Path(__file__).parents[1] / "processing" / "images" / "image.heic"
READ, UNREADABLE, LEFT_OUT = "read", "unreadable", "left out"


def write_hard_images(folder: Path) -> dict[str, str]:
    """Writes the files and returns what becomes of each: read, unreadable, or left out; by path in the folder.

    Args:
      folder: folder to write to, which exists.
    """
    rgb = PIL.Image.fromarray(smooth(40, 56))
    found: dict[str, str] = {}

    def put(name: str | bytes, data: bytes, outcome: str = READ) -> Path:
        name = os.fsdecode(name)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        found[name] = outcome
        return path

    _put_modes(put, rgb)
    _put_formats(put, rgb)
    _put_shapes(put, rgb)
    _put_broken(put, rgb)
    _put_names(put, rgb)
    _put_links(put, rgb, folder, found)
    return found


def _put_modes(put, rgb: PIL.Image.Image) -> None:
    """Writes images of every depth and mode."""
    grey = rgb.convert("L")
    deep = np.asarray(grey, np.uint16) * 257
    put("16-bit.png", encoded(deep, "PNG"))
    put("16-bit.tif", encoded(deep, "TIFF"))
    put("16-bit.pgm", b"P5\n56 40\n65535\n" + deep.astype(">u2").tobytes())
    put("integers.tif", encoded(PIL.Image.fromarray(deep.astype(np.int32)), "TIFF"))
    put("floats.tif", encoded(np.asarray(grey, np.float32) / 255, "TIFF"))
    put("cmyk.jpg", encoded(rgb.convert("CMYK"), "JPEG"))
    put("cmyk.tif", encoded(rgb.convert("CMYK"), "TIFF"))
    put("lab.tif", encoded(picture("LAB", 40, 56), "TIFF"))
    put("ycbcr.tif", encoded(rgb.convert("YCbCr"), "TIFF"))
    put("grey.jpg", encoded(grey, "JPEG"))
    put("grey and alpha.png", encoded(rgb.convert("LA"), "PNG"))
    put("alpha.png", encoded(picture("RGBA", 40, 56), "PNG"))
    put("palette and alpha.png", encoded(picture("P+bytes", 40, 56), "PNG"))
    put("palette and key.gif", encoded(picture("P+index", 40, 56), "GIF"))
    put("one bit.png", encoded(rgb.convert("1"), "PNG"))
    put("one bit.pbm", encoded(rgb.convert("1"), "PPM"))


def _put_formats(put, rgb: PIL.Image.Image) -> None:
    """Writes images in formats that are met less often, and animations."""
    frames = {"save_all": True, "append_images": [rgb.transpose(PIL.Image.Transpose.ROTATE_180)]}
    put("animated.gif", encoded(rgb, "GIF", **frames))
    put("animated.webp", encoded(rgb, "WEBP", **frames))
    put("animated.png", encoded(rgb, "PNG", **frames))
    put("pages.tif", encoded(rgb, "TIFF", **frames))
    put("two.mpo", encoded(rgb, "MPO", **frames))
    put("icon.ico", encoded(rgb, "ICO", sizes=[(32, 32)]))
    put("a.jp2", encoded(rgb, "JPEG2000"))
    put("a.tga", encoded(rgb, "TGA"))
    put("a.psd", _photoshop(rgb))
    put("a.dib", encoded(rgb, "DIB"))
    put("a.bmp", encoded(rgb, "BMP"))
    put("a.ppm", encoded(rgb, "PPM"))
    put("a.pnm", encoded(rgb, "PPM"))
    put("a.pcx", encoded(picture("P", 40, 56), "PCX"))
    put("a.jpe", encoded(rgb, "JPEG"))
    put("a.jfif", encoded(rgb, "JPEG"))
    heic = HEIC.read_bytes()
    put("photo.heic", heic, READ if importlib.util.find_spec("pillow_heif") else UNREADABLE)
    put("progressive.jpg", encoded(rgb, "JPEG", progressive=True))


def _put_shapes(put, rgb: PIL.Image.Image) -> None:
    """Writes images of extreme shapes and with camera orientations."""
    put("1x1.png", encoded(rgb.resize((1, 1)), "PNG"))
    put("one row.png", encoded(rgb.resize((300, 1)), "PNG"))
    put("8000x30.png", encoded(PIL.Image.new("RGB", (8000, 30), "teal"), "PNG"))
    for orientation in range(2, 9):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        put(f"orientation {orientation}.jpg", encoded(rgb, "JPEG", exif=exif))
    entry = struct.pack(">HHHI", 1, 0x010F, 2, 200) + struct.pack(">I", 9000)  # a text beyond the end
    put("corrupt exif.jpg", encoded(rgb, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08" + entry + bytes(4)))


def _put_broken(put, rgb: PIL.Image.Image) -> None:
    """Writes files that are no whole images."""
    put("cut.jpg", encoded(rgb, "JPEG")[:-200], UNREADABLE)
    put("cut.png", encoded(rgb, "PNG")[:-100], UNREADABLE)
    put("cut.pcx", encoded(picture("P", 40, 56), "PCX")[:-300], UNREADABLE)
    put("no bytes.png", b"", UNREADABLE)
    put("page.jpg", b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n", UNREADABLE)
    put("text.png", b"not an image at all\n", UNREADABLE)
    put("postscript.png", encoded(rgb, "EPS"), UNREADABLE)
    put("bomb.png", bomb(30_000, 20_000), UNREADABLE)


def _put_names(put, rgb: PIL.Image.Image) -> None:
    """Writes files with odd names, hidden ones, other ones, and some in folders of the system."""
    png = encoded(rgb, "PNG")
    put("a jpeg.png", encoded(rgb, "JPEG"))
    put("new\nline.png", png)
    put("tab\t.png", png)
    put("right-to-left \u202egnp.png", png)
    put(b"bytes \xff\xfe.png", png)
    put("UPPER.PNG", png)
    put("deep/er/a.png", png)
    put(".hidden.png", png, LEFT_OUT)
    put("._a.jpg", b"\0\5\x16\7", LEFT_OUT)
    put("notes.txt", b"a text\n", LEFT_OUT)
    put("Thumbs.db", b"\xd0\xcf\x11\xe0", LEFT_OUT)
    put(".thumbnails/a.png", png, LEFT_OUT)
    put("@eaDir/a.jpg/thumb.jpg", png, LEFT_OUT)
    put("__MACOSX/._b.png", png, LEFT_OUT)
    put("__MACOSX/b.png", png, LEFT_OUT)


def _put_links(put, rgb: PIL.Image.Image, folder: Path, found: dict[str, str]) -> None:
    """Makes symbolic links to a file, to nothing, to itself, and to the folder above."""
    (folder / "link.png").symlink_to("alpha.png")
    (folder / "broken link.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "deep" / "above").symlink_to("..")
    found |= {"link.png": READ, "broken link.png": UNREADABLE, "loop.png": UNREADABLE}


def _photoshop(rgb: PIL.Image.Image) -> bytes:
    """Returns a Photoshop file of one layer, which Pillow reads but does not write."""
    head = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, rgb.height, rgb.width, 8, 3)
    planes = b"".join(channel.tobytes() for channel in rgb.split())
    return head + struct.pack(">III", 0, 0, 0) + struct.pack(">H", 0) + planes
