"""Files that are cut short: an error, or the same pixels, for every format that is read."""

import io
import struct

import numpy as np
import PIL.Image
import pytest

from siglip_jax.processing import load_image
from siglip_jax.processing.images.formats import FORMATS
from tests.support.images import encoded, noise, picture, smooth


def tga_with_alpha_unused(compressed: bool) -> bytes:
    """Returns a TGA of four channels whose extension at the end says that the fourth is not alpha."""
    options = {"compression": "tga_rle"} if compressed else {}
    data = encoded(noise(8, 9, 4), "TGA", **options)[:-26]
    extension = struct.pack("<H", 495) + bytes(492) + b"\0"  # the last byte: no alpha
    return data + extension + struct.pack("<II", len(data), 0) + b"TRUEVISION-XFILE.\0"


def tiff_of_signed_numbers() -> bytes:
    """Returns a TIFF of 16 signed bits whose directory, with the sign in its last entry, is at the end."""
    pixels = (np.arange(63, dtype="<i2") * 500).tobytes()
    entries = [(256, 3, 1, 9), (257, 3, 1, 7), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    entries += [(277, 3, 1, 1), (278, 3, 1, 7), (279, 4, 1, len(pixels)), (339, 3, 1, 2)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + directory + bytes(4)


PLAIN = b"P2\n3 3\n255\n10 20 30\n40 50 60\n70 80 251\n"
FILES = {
    "PCX of 256 colours": encoded(picture("P", 9, 11), "PCX"),
    "TIFF of signed numbers": tiff_of_signed_numbers(),
    "TIFF by libtiff": encoded(smooth(9, 11), "TIFF", compression="tiff_lzw"),
    "TGA without alpha": tga_with_alpha_unused(False),
    "TGA without alpha, compressed": tga_with_alpha_unused(True),
    "plain PGM": PLAIN,
    "JPEG 2000": encoded(smooth(40, 50), "JPEG2000"),
    "bare JPEG 2000": encoded(smooth(40, 50), "JPEG2000", no_jp2=True),
}


def of_all_formats() -> dict[str, bytes]:
    found = {}
    for format in FORMATS:
        for mode in ("RGB", "L", "P", "1", "RGBA", "LA", "I;16"):
            try:
                found[f"{format} {mode}"] = encoded(picture(mode, 9, 11), format)
            except (KeyError, OSError, ValueError):  # a format that Pillow only reads, or without this mode
                continue
    return found


def whole(data: bytes) -> tuple[str, tuple[int, int], bytes]:
    image = load_image(data)
    return image.mode, image.size, image.tobytes()


@pytest.mark.parametrize("name", FILES)
def test_formats_that_pillow_reads_wrongly_when_cut_are_an_error_at_every_place(name):
    data = FILES[name]
    expected = whole(data)
    assert PIL.Image.open(io.BytesIO(data)).size == expected[1]
    read = 0
    # A TGA cut after its last pixel is a whole one of the first version, whose fourth channel is alpha.
    first_version = 18 + 8 * 9 * 4 if name == "TGA without alpha" else 0
    for cut in {*range(1, len(data))} - {first_version}:
        try:
            assert whole(data[:cut]) == expected, cut
            read += 1
        except ValueError as error:
            assert str(error).startswith(("bytes: image must be complete", "bytes: data must be an image"))
    assert read < 5  # only padding after the image may be missing


def test_every_format_is_an_error_or_the_same_pixels_when_cut():
    formats = set()
    for name, data in of_all_formats().items():
        expected, errors = whole(data), 0
        cuts = {*range(len(data) - 12, len(data)), *range(9, len(data), 37)}
        for cut in cuts:
            try:
                assert whole(data[:cut]) == expected, (name, cut)
            except ValueError:
                errors += 1
        assert errors > 0, name
        formats.add(name.split()[0])
    assert {*FORMATS} - formats <= {"PSD", "AVIF"}
