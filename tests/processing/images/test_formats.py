"""Which files are opened as images: the list of formats, their endings, and what is refused before it is decoded."""

import ast
import importlib.util
import inspect
import io
import struct
import sys
from pathlib import Path

import numpy as np
import PIL.EpsImagePlugin
import PIL.Image
import pytest

import siglip_jax
from siglip_jax.data.transform import Transform
from siglip_jax.inference import exported_run
from siglip_jax.processing import load_image
from siglip_jax.processing.images.formats import FORMATS, image_suffixes, is_image_name
from tests.support.hard_images import HEIC
from tests.support.images import encoded, noise, smooth


def icon(frame: bytes, width: int = 16) -> bytes:
    """Returns an icon of one frame that claims to have 16 pixels a side."""
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", width, width, 0, 0, 1, 32, len(frame), 22) + frame


class TestPrograms:
    def test_postscript_named_png_starts_no_program(self, tmp_path, monkeypatch):
        started = []
        monkeypatch.setattr(PIL.EpsImagePlugin, "Ghostscript", lambda *a, **k: started.append(a))
        path = tmp_path / "a.png"
        path.write_bytes(encoded(noise(8, 8), "EPS"))
        with pytest.raises(ValueError, match=r"a\.png: data must be an image [^\n]*, got PostScript, [^\n]*convert it"):
            load_image(path)
        assert started == []

    def test_the_package_opens_images_in_one_place_with_a_list_of_formats(self):
        opened = []
        for file in Path(siglip_jax.__file__).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open"):
                    opened.append((file.name, "formats" in [keyword.arg for keyword in node.keywords]))
        # The program beside exported encoders runs without this package.
        assert sorted(opened) == [("exported_run.py", True), ("formats.py", True)]
        assert {*exported_run.FORMATS} < {*FORMATS}

    @pytest.mark.parametrize("format", ["EPS", "WMF", "GRIB", "BUFR", "HDF5", "IPTC", "MPEG"])
    def test_formats_that_other_programs_draw_are_not_read(self, format):
        assert format not in FORMATS


class TestEndings:
    @pytest.mark.parametrize(
        "ending",
        [".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff"]
        + [".jp2", ".j2k", ".tga", ".psd", ".ico", ".pcx", ".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".avif", ".qoi"]
        + [".heic", ".heif", ".JPG"],
    )
    def test_of_images(self, ending):
        assert is_image_name(f"folder/a{ending}")

    @pytest.mark.parametrize("name", ["a.eps", "a.ps", "a.wmf", "a.pdf", "a.txt", "a.mp4", "a.svg", "jpg", "a.jpg.txt"])
    def test_of_other_files(self, name):
        assert not is_image_name(name)

    def test_are_all_that_pillow_registers_for_the_formats(self):
        registered = {e for e, f in PIL.Image.registered_extensions().items() if f in {*FORMATS, "MPO"}}
        assert {*image_suffixes()} - registered == {".heic", ".heics", ".heif", ".heifs", ".hif"}
        assert registered <= {*image_suffixes()}

    def test_every_format_is_read_back(self):
        image = PIL.Image.fromarray(smooth(24, 16))
        read = []
        for format in FORMATS:
            if format not in PIL.Image.SAVE:  # as PSD
                continue
            options = {"lossless": True} if format == "WEBP" else {}
            found = load_image(encoded(image, format, **options)).convert("RGB")
            exact = format not in ("JPEG", "GIF", "AVIF", "ICO")
            assert found.size == image.size or format == "ICO"
            assert np.array_equal(found, image) or not exact, format
            read.append(format)
        assert len(read) > 13


class TestWhatOtherBytesAre:
    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (b"", "got no bytes"),
            (b"<!DOCTYPE html><html><head>", r"got text that begins with '<!DOCTYPE html><html><he'"),
            (b"\x01\x02\x03" * 30, "got other bytes"),
        ],
    )
    def test_is_said(self, data, said):
        with pytest.raises(ValueError, match=f"^bytes: data must be an image that Pillow can read, {said}"):
            load_image(data)


class TestPixelLimit:
    def test_is_the_same_for_training_and_inference(self):
        limits = [inspect.signature(f).parameters["max_pixels"].default for f in (load_image, Transform.__init__)]
        assert limits == [PIL.Image.MAX_IMAGE_PIXELS] * 2

    def test_holds_for_the_frames_of_an_icon_whatever_it_claims(self):
        frame = encoded(noise(40, 50), "PNG")
        assert load_image(icon(frame), max_pixels=2000).size == (50, 40)
        with pytest.raises(ValueError, match=r"^bytes: image must have at most 1999 pixels, got 2000; raise max_p"):
            load_image(icon(frame), max_pixels=1999)
        bitmap = io.BytesIO()
        PIL.Image.fromarray(noise(40, 50, 4)).save(bitmap, "ICO", sizes=[(50, 40)], bitmap_format="bmp")
        with pytest.raises(ValueError, match="image must have at most 1999 pixels, got 2000"):
            load_image(bitmap.getvalue(), max_pixels=1999)


class TestHeic:
    def test_without_its_package_the_error_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(ValueError, match=r"HEIF needs pillow_heif, .*'pillow-heif>=1\.0' \(the extra 'heif'\)"):
            load_image(HEIC)

    @pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="needs the extra heif")
    def test_with_its_package_it_is_read(self):
        image = load_image(HEIC)
        assert (image.mode, image.size) == ("RGB", (96, 64))
        assert np.abs(np.asarray(image, float) - smooth(64, 96)).mean() < 6
        data = HEIC.read_bytes()
        for cut in (40, len(data) // 2, len(data) - 1):
            with pytest.raises(ValueError, match=r"^bytes: image must be complete"):
                load_image(data[:cut])
