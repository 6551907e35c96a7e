"""Finds files that were cut short where Pillow would read other pixels without an error.

For most formats Pillow itself refuses a file whose pixels are not all there. These are the exceptions: the palette at
the end of a PCX, the directory at the end of a TIFF, the footer of a TGA that says what its alpha means, the last
number of a plain PGM or PPM, and JPEG 2000, which decodes coarsely from a part of the data.
"""

import io
import struct

import PIL.Image

_TIFF_SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # others: 1 byte
_ASCII = 2  # type of a TIFF value: a text, which does not change the pixels
_XMP, _PRIVATE = 700, 32768  # tags that do not change the pixels: this one, and those from the other on
_TGA_FOOTER = b"TRUEVISION-XFILE.\0"


def is_complete(image: PIL.Image.Image, file: io.BufferedIOBase) -> bool:
    """Returns whether the end of the file of an opened image is there, as far as Pillow would not notice.

    Args:
      image: image opened from the file; its pixels need not be decoded.
      file: the file, which can seek; its position is kept.
    """
    check = _CHECKS.get(image.format or "")
    if check is None:
        return True
    place = file.tell()
    try:
        return check(image, file)
    finally:
        file.seek(place)


def _pcx(image: PIL.Image.Image, file: io.BufferedIOBase) -> bool:
    """Checks for the palette at the end of a PCX of 256 colours; without it Pillow reads the image as grey."""
    file.seek(0)
    head = file.read(66)
    return image.mode != "L" or head[1] != 5 or _end(file, 769)[:1] == b"\x0c"


def _tiff(image: PIL.Image.Image, file: io.BufferedIOBase) -> bool:
    """Checks that the first directory of a TIFF and the values it points to lie within the file."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(16)
    order = "<" if head.startswith(b"II") else ">"
    big = 43 in struct.unpack_from("<BB", head, 2)
    number, count, entry = ("Q", "Q", 20) if big else ("L", "H", 12)
    (start,) = struct.unpack_from(order + number, head, 8 if big else 4)
    file.seek(start)
    width = struct.calcsize(order + count)
    counted = file.read(width)
    if len(counted) < width:
        return False
    (entries,) = struct.unpack(order + count, counted)
    if start + width + entries * entry > size:
        return False
    directory = file.read(entries * entry)
    inline = struct.calcsize(order + number)
    for i in range(entries):
        tag, kind, values, offset = struct.unpack_from(f"{order}HH{number}{number}", directory, i * entry)
        length = values * _TIFF_SIZES.get(kind, 1)
        matters = tag < _PRIVATE and tag != _XMP and kind != _ASCII
        if matters and length > inline and offset + length > size:
            return False
    return True


def _tga(image: PIL.Image.Image, file: io.BufferedIOBase) -> bool:
    """Checks for the footer of a TGA with alpha, or that the file ends with its pixels, as in the first version."""
    if image.mode != "RGBA" or _end(file, 26).endswith(_TGA_FOOTER):
        return True
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(18)
    identity, colours, kind = head[:3]
    palette = struct.unpack_from("<H", head, 5)[0] * ((head[7] + 7) // 8) if colours else 0
    depth = (head[16] + 7) // 8
    return not kind & 8 and size == 18 + identity + palette + image.width * image.height * depth


def _ppm(image: PIL.Image.Image, file: io.BufferedIOBase) -> bool:
    """Checks that white space follows the last number of a plain PGM or PPM, so that all its digits are there."""
    file.seek(0)
    return file.read(2) not in (b"P2", b"P3") or _end(file, 1).isspace()


def _jpeg2000(image: PIL.Image.Image, file: io.BufferedIOBase) -> bool:
    """Checks that the last codestream has its end marker."""
    file.seek(0)
    data = file.read()
    return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\x93")


def _end(file: io.BufferedIOBase, count: int) -> bytes:
    """Returns the last bytes of a file, or b"" if it is shorter."""
    if file.seek(0, 2) < count:
        return b""
    file.seek(-count, 2)
    return file.read(count)


_CHECKS = {"PCX": _pcx, "TIFF": _tiff, "TGA": _tga, "PPM": _ppm, "JPEG2000": _jpeg2000}
