"""Images of more than eight bits, and arrays of every type: the type decides the range, never the values."""

import io
import json
import warnings

import numpy as np
import PIL.Image
import pytest

from siglip_jax.cli import main
from siglip_jax.data.example import Example
from siglip_jax.data.transform import Transform
from siglip_jax.processing import SiglipImageProcessorPil, load_image
from siglip_jax.processing.images.depth import eight_bits, is_deep
from tests.support.images import smooth

GREY = smooth(48, 64)[..., 0]


def stored(image: PIL.Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pgm(maxval: int) -> bytes:
    """Returns a binary PGM of 16 bits a value; Pillow writes only a maxval of 65535."""
    values = np.rint(GREY / 255 * maxval).astype(">u2")
    return b"P5 %d %d %d\n" % (GREY.shape[1], GREY.shape[0], maxval) + values.tobytes()


SIXTEEN = PIL.Image.fromarray(GREY.astype(np.uint16) * np.uint16(257))
WIDE = PIL.Image.fromarray(GREY.astype(np.int32) * 257)
FLOAT = PIL.Image.fromarray(GREY / np.float32(255))
FILES = {
    "png": stored(SIXTEEN, "PNG"),
    "tiff": stored(SIXTEEN, "TIFF"),
    "tiff of 32 bits": stored(WIDE, "TIFF"),
    "tiff of floats": stored(FLOAT, "TIFF"),
    "pgm": pgm(65535),
    "jp2": stored(SIXTEEN, "JPEG2000", irreversible=False),
}


class TestFiles:
    @pytest.mark.parametrize("kind", FILES)
    def test_a_deep_file_is_the_image_of_eight_bits(self, kind, shared_siglip):
        assert is_deep(PIL.Image.open(io.BytesIO(FILES[kind])))
        np.testing.assert_array_equal(load_image(FILES[kind]), GREY)
        np.testing.assert_array_equal(
            SiglipImageProcessorPil()(FILES[kind]).pixel_values, SiglipImageProcessorPil()(GREY).pixel_values
        )
        cosine = (shared_siglip.encode_image(FILES[kind]) * shared_siglip.encode_image(GREY)).sum()
        assert cosine == pytest.approx(1.0, abs=1e-6)

    def test_training_reads_a_deep_file_as_the_image_of_eight_bits(self, shared_siglip):
        transform = Transform(shared_siglip.processor, captions=False)
        rng = np.random.default_rng(0)
        expected = transform(Example(stored(PIL.Image.fromarray(GREY), "PNG"), (), None, "a"), rng)["pixels"]
        for data in FILES.values():
            np.testing.assert_array_equal(transform(Example(data, (), None, "a"), rng)["pixels"], expected)

    def test_the_command_line_reads_a_deep_file_as_the_image_of_eight_bits(self, checkpoint, tmp_path, capsys):
        PIL.Image.fromarray(GREY).save(tmp_path / "eight.png")
        (tmp_path / "sixteen.png").write_bytes(FILES["png"])
        (tmp_path / "floats.tiff").write_bytes(FILES["tiff of floats"])
        names = ("eight.png", "sixteen.png", "floats.tiff")
        paths = [str(tmp_path / name) for name in names]
        assert main(["classify", *paths, "--labels", "a cat", "a dog", "--json", "--model", str(checkpoint)]) == 0
        eight, *deep = [result["scores"] for result in json.loads(capsys.readouterr().out)]
        for scores in deep:
            assert [entry["score"] for entry in scores] == pytest.approx([entry["score"] for entry in eight], rel=1e-5)

    @pytest.mark.parametrize("maxval", [1023, 4095])
    def test_the_range_of_a_pgm_is_the_one_it_names(self, maxval):
        np.testing.assert_array_equal(load_image(pgm(maxval)), GREY)

    def test_the_range_of_a_tiff_is_that_of_its_bits_and_its_sign(self):
        signed = stored(PIL.Image.fromarray(np.rint(GREY / 255 * 32767).astype(np.uint16)), "TIFF", tiffinfo={339: 2})
        assert PIL.Image.open(io.BytesIO(signed)).mode == "I"
        np.testing.assert_array_equal(load_image(signed), GREY)

    def test_a_dark_image_of_sixteen_bits_stays_dark(self):
        dark = stored(PIL.Image.fromarray(GREY.astype(np.uint16)), "PNG")
        assert np.asarray(load_image(dark)).max() == 1

    def test_the_transparent_value_of_a_png_of_sixteen_bits(self):
        key = int(GREY[0, 0])
        image = load_image(stored(SIXTEEN, "PNG", transparency=key * 257))
        assert image.mode == "LA"
        np.testing.assert_array_equal(np.asarray(image)[..., 0], GREY)
        np.testing.assert_array_equal(np.asarray(image)[..., 1] == 0, key == GREY)

    def test_a_deep_file_is_turned_as_its_exif_orientation_says(self):
        exif = PIL.Image.Exif()
        exif[274] = 6
        np.testing.assert_array_equal(load_image(stored(SIXTEEN, "PNG", exif=exif)), np.rot90(GREY, -1))

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (
                FLOAT.point(lambda value: value * 255),
                r"^bytes: image of mode F must have values in \[0, 1\], got 0 to 25\d",
            ),
            (
                PIL.Image.fromarray(np.int32([[-5, 9]])),
                r"^bytes: image of mode I must have values in \[0, 65535\], got -5 to 9",
            ),
            (PIL.Image.fromarray(np.int32([[0, 1 << 20]])), r"in \[0, 65535\], got 0 to 1\.04858e\+06; scale them$"),
            (PIL.Image.fromarray(np.float32([[0, np.nan]])), r"in \[0, 1\], got nan to nan"),
        ],
    )
    def test_values_outside_the_range_are_refused_with_the_range_found(self, image, message):
        with pytest.raises(ValueError, match=message):
            load_image(stored(image, "TIFF"))


class TestPil:
    @pytest.mark.parametrize(
        "image",
        [
            SIXTEEN,
            WIDE,
            FLOAT,
            PIL.Image.frombytes("I;16B", (64, 48), (GREY.astype(">u2") * 257).astype(">u2").tobytes()),
        ],
        ids=lambda image: image.mode,
    )
    def test_every_deep_mode_is_the_image_of_eight_bits(self, image, shared_siglip):
        np.testing.assert_array_equal(load_image(image), GREY)
        np.testing.assert_array_equal(shared_siglip.encode_image(image), shared_siglip.encode_image(GREY))
        np.testing.assert_array_equal(
            shared_siglip.similarity([image], "a cat"), shared_siglip.similarity(GREY, "a cat")
        )

    @pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"])
    def test_modes_of_eight_bits_are_returned_unchanged(self, mode):
        image = PIL.Image.new(mode, (4, 3))
        assert eight_bits(image) is image

    def test_a_processor_called_with_a_deep_pil_image_says_that_it_clips(self):
        with pytest.warns(UserWarning, match=r"mode I;16 is clipped to 0 to 255, .* siglip_jax.load_image\(image\)"):
            clipped = SiglipImageProcessorPil()(SIXTEEN).pixel_values
        assert clipped.mean() > 0.9
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            SiglipImageProcessorPil()(load_image(SIXTEEN))


class TestArrays:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_floats_of_one_are_white(self, dtype, shared_siglip):
        white = shared_siglip.encode_image(np.full((64, 64, 3), 255, np.uint8))
        np.testing.assert_array_equal(shared_siglip.encode_image(np.ones((64, 64, 3), dtype)), white)
        np.testing.assert_array_equal(load_image((GREY / 255).astype(dtype)), GREY)

    def test_bools_are_black_and_white(self):
        mask = GREY > 99
        np.testing.assert_array_equal(load_image(mask), np.uint8(mask) * 255)
        assert load_image(np.ones((4, 5, 3), bool)).getpixel((0, 0)) == (255, 255, 255)

    def test_sixteen_bits_reach_from_0_to_65535(self):
        np.testing.assert_array_equal(load_image(GREY.astype(np.uint16) * np.uint16(257)), GREY)
        assert np.asarray(load_image(np.full((4, 5), 255, np.uint16))).max() == 1

    @pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint32, np.uint64])
    def test_other_integers_reach_from_0_to_255(self, dtype):
        values = GREY // 2 if dtype == np.int8 else GREY
        np.testing.assert_array_equal(load_image(values.astype(dtype)), values)

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (GREY.astype(np.float32), r"^image of float32 must have values in \[0, 1\], got 0 to 25\d; scale them$"),
            (
                np.full((4, 5, 3), -0.5),
                r"^image of float64 must have values in \[0, 1\], got -0.5 to -0.5; scale them$",
            ),
            (np.full((4, 5, 3), np.nan), r"in \[0, 1\], got nan to nan"),
            (np.full((4, 5, 3), 300), r"^image of int64 must have values in \[0, 255\], got 300 to 300; scale them$"),
            (np.full((4, 5, 3), 1j), "^image must be an array of bools, integers or floats .* got complex128 with 3$"),
            (np.zeros((0, 5)), r"must be a non-empty array HW, HWC or CHW, got the shape \(0, 5\)$"),
        ],
    )
    def test_values_outside_the_range_are_refused_with_the_range_found(self, array, message, shared_siglip):
        with pytest.raises(ValueError, match=message):
            load_image(array)
        with pytest.raises(ValueError, match=message):
            shared_siglip.encode_image(array)

    @pytest.mark.parametrize("rows", [1, 3, 4])
    def test_few_rows_are_rows_unless_the_layout_is_told(self, rows, shared_siglip):
        image = smooth(rows, 30)
        np.testing.assert_array_equal(load_image(image), image)
        expected = shared_siglip.encode_image(PIL.Image.fromarray(image))
        np.testing.assert_array_equal(shared_siglip.encode_image(image), expected)
        first = np.ascontiguousarray(smooth(30, 3).transpose(2, 0, 1))
        np.testing.assert_array_equal(load_image(first, input_data_format="channels_first"), smooth(30, 3))

    def test_the_layout_of_the_engines_arrays_is_that_of_its_image_processor(self, siglip):
        first = np.ascontiguousarray(smooth(30, 3).transpose(2, 0, 1))  # 3 channels of 30 x 3, or 3 rows of 30 x 3
        upright = siglip.encode_image(PIL.Image.fromarray(smooth(30, 3)))
        assert (siglip.encode_image(first) * upright).sum() < 0.999
        siglip.processor.image_processor = SiglipImageProcessorPil(size=(32, 32), input_data_format="channels_first")
        np.testing.assert_array_equal(siglip.encode_image(first), upright)
