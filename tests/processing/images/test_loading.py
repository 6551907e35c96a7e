"""Images from everywhere: formats, camera orientation, limits, a server of this machine, broken files."""

import base64
import io
import os
import struct
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from siglip_jax.processing import load_image
from tests.support.images import bomb, encoded, noise, picture, smooth
from tests.support.spiece import quiet_reference

PNG = encoded(PIL.Image.fromarray(noise(20, 30)), "PNG")
JPEG = encoded(PIL.Image.fromarray(smooth(60, 90)), "JPEG")


class TestSources:
    def test_all_ways_to_one_picture(self, tmp_path):
        path = tmp_path / "an image.png"
        path.write_bytes(PNG)
        uri = "data:image/png;base64," + base64.b64encode(PNG).decode()
        for source in (path, str(path), PNG, bytearray(PNG), memoryview(PNG), uri):
            np.testing.assert_array_equal(load_image(source), noise(20, 30))

    def test_base64_as_the_reference(self, tmp_path, monkeypatch):
        from transformers.image_utils import load_image as reference

        plain = base64.b64encode(PNG).decode()
        lines = base64.encodebytes(PNG).decode()
        for text in (plain, lines, f"data:image/png;base64,{plain}", f"data:image/png;base64,\r\n{lines}"):
            np.testing.assert_array_equal(load_image(text), reference(text))
            np.testing.assert_array_equal(load_image(text), noise(20, 30))
        with pytest.raises(ValueError, match=r"^base64: data must have at most 10 bytes"):
            load_image(plain, max_bytes=10)
        with pytest.raises(ValueError, match=r"^base64: image must be complete"):
            load_image(plain[: len(plain) // 8 * 4])
        monkeypatch.chdir(tmp_path)
        Path("cats").write_bytes(PNG)  # a file whose name could be base64
        np.testing.assert_array_equal(load_image("cats"), noise(20, 30))
        with pytest.raises(FileNotFoundError, match="^dogs: no such image file$"):
            load_image("dogs")

    def test_an_upright_pil_image_of_eight_bits_is_passed_on(self):
        image = picture("RGBA", 4, 5)
        assert load_image(image) is image

    @pytest.mark.parametrize(
        "array",
        [
            noise(20, 30),
            noise(20, 30).transpose(2, 0, 1),
            jnp.asarray(noise(20, 30)),
            np.float32(noise(20, 30) / 255),
            noise(20, 30).astype(np.int64),
        ],
    )
    def test_arrays(self, array):
        np.testing.assert_array_equal(load_image(array), noise(20, 30))

    def test_grey_alpha_and_fractions(self):
        assert load_image(noise(20, 30)[..., 0]).mode == "L"
        assert load_image(noise(20, 30, 4)).mode == "RGBA"
        fractions = np.array([[0.0, 0.5, 1.0]] * 9)
        np.testing.assert_array_equal(load_image(fractions), [[0, 128, 255]] * 9)

    @pytest.mark.parametrize(
        ("format", "modes"),
        [
            ("PNG", ["RGB", "L", "RGBA", "LA", "P", "1", "I;16"]),
            ("TIFF", ["RGB", "L", "RGBA", "LA", "P", "1", "I;16", "CMYK"]),
            ("WEBP", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK"]),
            ("GIF", ["RGB", "L", "RGBA", "LA", "P", "1"]),
            ("BMP", ["RGB", "L", "RGBA", "P", "1"]),
            ("JPEG", ["RGB", "L", "1", "CMYK"]),
        ],
    )
    def test_formats_as_the_reference_but_for_alpha_and_depth(self, tmp_path, format, modes):
        from transformers.image_utils import load_image as reference

        for mode in modes:
            data = encoded(picture(mode, 40, 30), format)
            if mode == "I;16":  # of which the reference clips what exceeds eight bits
                np.testing.assert_array_equal(load_image(data), np.rint(np.asarray(picture(mode, 40, 30)) / 257))
                continue
            (tmp_path / "picture").write_bytes(data)
            image = load_image(tmp_path / "picture")
            image.tobytes()  # all there, though the file is closed
            with quiet_reference():
                expected = reference(PIL.Image.open(io.BytesIO(data)))
            np.testing.assert_array_equal(image.convert("RGB"), expected)
            assert image.mode == PIL.Image.open(io.BytesIO(data)).mode

    def test_progressive(self):
        image = PIL.Image.fromarray(smooth(60, 90))
        found = load_image(encoded(image, "JPEG", progressive=True, quality=95))
        assert np.abs(np.asarray(found, int) - np.asarray(image, int)).mean() < 5

    @pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_first_frame_of_an_animation(self, format):
        frames = [PIL.Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 0, 255))]
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        found = load_image(data)
        assert type(found) is PIL.Image.Image
        np.testing.assert_array_equal(found.convert("RGB"), frames[0])


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
    def test_is_followed_for_every_source_as_by_the_reference(self, tmp_path, orientation, format):
        image = PIL.Image.fromarray(smooth(16, 24))
        exif = image.getexif()
        exif[0x0112] = orientation
        data = encoded(image, format, exif=exif)
        stored = PIL.Image.open(io.BytesIO(data))
        upright = np.asarray(PIL.ImageOps.exif_transpose(stored))
        (tmp_path / "a").write_bytes(data)
        np.testing.assert_array_equal(load_image(data), upright)
        np.testing.assert_array_equal(load_image(tmp_path / "a"), upright)
        assert upright.shape == ((24, 16, 3) if orientation > 4 else (16, 24, 3))
        np.testing.assert_array_equal(load_image(stored), upright)
        np.testing.assert_array_equal(load_image(load_image(stored)), upright)

    def test_unreadable_notes_of_the_camera(self):
        data = encoded(PIL.Image.fromarray(smooth(16, 24)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken")
        assert load_image(data).size == (24, 16)

    def test_unreadable_notes_of_the_camera_print_nothing(self, recwarn):
        entry = struct.pack(">HHHI", 2, 0x010F, 2, 200) + struct.pack(">I", 9000)  # a text beyond the end
        notes = b"Exif\0\0MM\0*\0\0\0\x08" + entry + struct.pack(">HHI", 0x0112, 3, 1) + b"\0\6\0\0" + bytes(4)
        data = encoded(smooth(16, 24), "JPEG", exif=notes)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            PIL.Image.open(io.BytesIO(data)).getexif()
        assert len(said) > 0  # by Pillow itself
        assert load_image(data).size == (16, 24)
        assert recwarn.list == []

    def test_a_turned_image_is_not_turned_again(self):
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        turned = load_image(encoded(smooth(16, 24), "JPEG", exif=exif))
        assert PIL.ImageOps.exif_transpose(turned).size == turned.size == (16, 24)
        assert turned.getexif().get(0x0112) is None


class TestBroken:
    @pytest.mark.parametrize("data", [b"", b"\0" * 100, b"<svg></svg>", b"RIFF\0\0\0\0WEBP", JPEG[:40], PNG[:20]])
    def test_no_image(self, tmp_path, data):
        (tmp_path / "a.jpg").write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.jpg: (data must be an image|image must be complete)[^\n]*$"):
            load_image(tmp_path / "a.jpg")
        with pytest.raises(ValueError, match=r"^bytes: (data must be an image|image must be complete)[^\n]*$"):
            load_image(data)

    @pytest.mark.parametrize("data", [JPEG[:-300], PNG[:-100], PNG[:200] + b"\0" * 50 + PNG[250:]])
    def test_truncated_or_damaged(self, tmp_path, data):
        (tmp_path / "a.jpg").write_bytes(data)
        with pytest.raises(
            ValueError, match=r"a\.jpg: image must be complete, got broken or truncated data \([^\n]*\)$"
        ):
            load_image(tmp_path / "a.jpg")

    def test_missing_and_directory(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.png: no such image file$"):
            load_image(tmp_path / "nowhere.png")
        with pytest.raises(ValueError, match="image must be a file, got a directory"):
            load_image(tmp_path)

    @pytest.mark.parametrize("size", [(12_000, 10_000), (20_000, 20_000)])  # Pillow warns of one, refuses the other
    def test_bombs(self, tmp_path, size):
        (tmp_path / "bomb.png").write_bytes(bomb(*size))
        with pytest.raises(ValueError, match=r"bomb\.png: image must have at most 99000000 pixels, got "):
            load_image(tmp_path / "bomb.png", max_pixels=99_000_000)

    def test_limits(self, tmp_path):
        (tmp_path / "a.png").write_bytes(PNG)
        for source in (PNG, tmp_path / "a.png", "data:image/png;base64," + base64.b64encode(PNG).decode()):
            with pytest.raises(ValueError, match="raise max_bytes"):
                load_image(source, max_bytes=len(PNG) - 1)
            with pytest.raises(ValueError, match="image must have at most 599 pixels, got 600"):
                load_image(source, max_pixels=599)
            assert load_image(source, max_bytes=len(PNG), max_pixels=600).size == (30, 20)

    def test_a_pipe_is_no_file(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(ValueError, match=r"pipe\.png: image must be a file, got a device or pipe$"):
            load_image(tmp_path / "pipe.png")

    @pytest.mark.parametrize("source", ["a/" * 5000 + "a.png", "a" * 300 + ".png", "a\0b.png"])
    def test_names_that_no_file_can_have(self, source):
        with pytest.raises((FileNotFoundError, ValueError)) as caught:
            load_image(source)
        message = str(caught.value)
        assert "\n" not in message and len(message) < 400
        assert message.startswith(("a/a/", "aaa", "image must be the path of a file, got 'a"))
        assert message.endswith(("...: no such image file", "with a null byte"))

    @pytest.mark.parametrize("source", [None, 3, [PNG], {"a": 1}, object()])
    def test_no_source(self, source):
        with pytest.raises(ValueError, match="image must be a path, URL, bytes, PIL image or array, got"):
            load_image(source)

    @pytest.mark.parametrize("uri", ["data:image/png,abc", "data:image/png;base64", "data:image/png;base64,@@@"])
    def test_data_uri(self, uri):
        with pytest.raises(ValueError, match=r"^data URI must be 'data:image/...;base64,' and valid base64, got"):
            load_image(uri)


def test_a_missing_file_that_looks_like_a_web_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "http_a.png").write_bytes(PNG)
    assert load_image("http_a.png").size == (30, 20)
