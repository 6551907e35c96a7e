"""`SiglipImageProcessorPil` against the reference's PIL class, bit for bit; options, files and errors."""

import contextlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import transformers

from siglip_jax.processing import SiglipImageProcessor, SiglipImageProcessorPil
from tests.support.images import DEEP, MODES, SIZES, edges, noise, picture, smooth
from tests.support.spiece import quiet_reference


@pytest.fixture(scope="module")
def reference_class():
    with quiet_reference():
        return transformers.SiglipImageProcessorPil


def same(reference_class, images, *, call=None, **options) -> np.ndarray:
    """Asserts that no value differs from the reference's and returns ours."""
    call = call or {}
    with quiet_reference():
        expected = reference_class(**options)(images, return_tensors="np", **call)["pixel_values"]
    found = SiglipImageProcessorPil(**options)(images, data_format="channels_first", **call).pixel_values
    assert found.shape == expected.shape
    assert found.dtype == (np.uint8 if expected.dtype == np.uint8 else np.float32)
    np.testing.assert_array_equal(found, expected.astype(found.dtype))
    return found


class TestPictures:
    @pytest.mark.parametrize("mode", MODES)
    def test_modes_and_sizes(self, reference_class, mode):
        for i, size in enumerate(SIZES):
            with (
                pytest.warns(UserWarning, match="is clipped to 0 to 255") if mode in DEEP else contextlib.nullcontext()
            ):
                same(reference_class, picture(mode, *size, seed=i), size={"height": 32, "width": 40})

    @pytest.mark.parametrize("mode", ["RGBa", "La"])
    def test_colours_multiplied_by_alpha(self, reference_class, mode):
        plain = picture("RGBA" if mode == "RGBa" else "LA", 20, 30)
        found = SiglipImageProcessorPil()(plain.convert(mode)).pixel_values
        there_and_back = plain.convert(mode).convert(plain.mode)
        np.testing.assert_array_equal(found, SiglipImageProcessorPil()(there_and_back).pixel_values)

    @pytest.mark.parametrize("resample", range(6))
    @pytest.mark.parametrize("make", [noise, smooth, edges])
    def test_filters(self, reference_class, resample, make):
        image = PIL.Image.fromarray(make(61, 90))
        for size in ((16, 16), (100, 200), (61, 90), (61, 20)):
            same(reference_class, image, size={"height": size[0], "width": size[1]}, resample=resample)

    def test_transparent_is_white(self):
        clear = PIL.Image.new("RGBA", (4, 4), (200, 0, 0, 0))
        assert (SiglipImageProcessorPil()(clear).pixel_values == 1.0).all()

    def test_transparency_does_not_depend_on_how_the_image_arrives(self, tmp_path):
        image = picture("RGBA", 30, 20)
        image.save(tmp_path / "a.png")
        processor = SiglipImageProcessorPil()
        expected = processor(image).pixel_values
        for way in (str(tmp_path / "a.png"), tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), np.asarray(image)):
            found = processor(way, size=(30, 20)).pixel_values
            np.testing.assert_allclose(found, processor(image, size=(30, 20)).pixel_values, atol=2 / 255 + 1e-6)
        np.testing.assert_array_equal(processor(tmp_path / "a.png").pixel_values, expected)


class TestArrays:
    @pytest.mark.parametrize(
        "shape",
        [(30, 20, 3), (3, 30, 20), (30, 20, 1), (1, 30, 20), (30, 20, 4), (4, 30, 20), (2, 30, 20, 3)],
    )
    def test_channels(self, reference_class, shape):
        same(reference_class, np.random.default_rng(0).integers(0, 256, shape, np.uint8))

    @pytest.mark.parametrize("shape", [(3, 20, 3), (1, 20, 3), (4, 20, 1), (3, 3, 4)])
    def test_two_possible_axes_of_the_channels_are_read_as_by_the_reference_with_a_warning(
        self, reference_class, shape
    ):
        image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        with pytest.warns(UserWarning, match="on the first or the last axis and is read with the first"):
            same(reference_class, image)
        same(reference_class, image, call={"input_data_format": "channels_last"})

    @pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.float64, np.float32])
    def test_whole_numbers_of_other_types(self, reference_class, dtype):
        same(reference_class, noise(20, 30).astype(dtype))

    @pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
    @pytest.mark.parametrize("resizes", [True, False])
    def test_fractions_without_rescaling(self, reference_class, dtype, resizes):
        image = (noise(20, 30) / 255).astype(dtype)
        same(reference_class, image, do_rescale=False, do_resize=resizes, image_mean=[0.48, 0.46, 0.41])

    @pytest.mark.parametrize("format", ["channels_first", "channels_last"])
    def test_format_that_is_told(self, reference_class, format):
        same(reference_class, noise(3, 20, 3), call={"input_data_format": format})

    def test_lists(self, reference_class):
        images = [noise(20, 30), picture("L", 40, 30), np.moveaxis(noise(9, 8), -1, 0)]
        same(reference_class, images)
        same(reference_class, [[images[0]], [images[0], images[0]]])
        same(reference_class, [np.stack([images[0], images[0]])])

    def test_grey_of_two_axes_and_jax(self):
        grey = noise(20, 30, 1)
        processor = SiglipImageProcessorPil()
        np.testing.assert_array_equal(processor(grey[..., 0]).pixel_values, processor(grey).pixel_values)
        colour = noise(20, 30)
        np.testing.assert_array_equal(processor(jnp.asarray(colour)).pixel_values, processor(colour).pixel_values)

    def test_torch(self):
        torch = pytest.importorskip("torch")
        colour = noise(20, 30)
        found = SiglipImageProcessorPil()(torch.from_numpy(colour)).pixel_values
        np.testing.assert_array_equal(found, SiglipImageProcessorPil()(colour).pixel_values)


class TestOptions:
    @pytest.mark.parametrize(
        "options",
        [
            {"size": 24},
            {"size": 24, "default_to_square": True},
            {"size": (24, 31)},
            {"size": {"shortest_edge": 24}},
            {"size": {"shortest_edge": 24, "longest_edge": 27}},
            {"size": {"shortest_edge": 24, "longest_edge": 99}},
            {"size": {"max_height": 50, "max_width": 20}},
            {"do_resize": False},
            {"do_rescale": False},
            {"do_normalize": False},
            {"do_rescale": False, "do_normalize": False},
            {"rescale_factor": 1 / 127.5},
            {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]},
            {"image_mean": 0.3, "image_std": 0.7},
            {"do_center_crop": True, "crop_size": 20, "size": {"shortest_edge": 33}},
            {"do_center_crop": True, "crop_size": {"height": 301, "width": 21}},
            {"do_center_crop": True, "crop_size": (15, 400), "do_resize": False},
            {"do_pad": True, "pad_size": {"height": 300, "width": 310}},
            {"do_convert_rgb": True, "resample": 2, "size": {"height": 7, "width": 9}},
        ],
    )
    @pytest.mark.parametrize("where", ["init", "call"])
    def test_options(self, reference_class, options, where):
        image = PIL.Image.fromarray(noise(41, 58))
        if where == "init":
            same(reference_class, image, **options)
        elif "default_to_square" not in options:
            same(reference_class, image, call=options)

    @pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "1"])
    def test_without_conversion(self, reference_class, mode):
        same(reference_class, picture(mode, 20, 30), do_convert_rgb=False, do_normalize=False)

    def test_unequal_images_are_padded(self, reference_class):
        images = [PIL.Image.fromarray(noise(20, 30)), PIL.Image.fromarray(noise(31, 12))]
        same(reference_class, images, do_resize=False, do_pad=True, pad_size={"height": 40, "width": 40})
        found = SiglipImageProcessorPil(do_resize=False, do_pad=True)(images).pixel_values
        assert found.shape == (2, 31, 30, 3)
        assert (found[0, 20:] == 0).all()

    def test_layout_and_kind(self):
        processor = SiglipImageProcessorPil(size=(16, 20))
        image = noise(40, 50)
        last = processor(image).pixel_values
        assert last.shape == (1, 16, 20, 3)
        assert last.dtype == np.float32
        first = processor(image, data_format="channels_first").pixel_values
        np.testing.assert_array_equal(np.moveaxis(first, 1, -1), last)
        on_device = processor(image, return_tensors="jax").pixel_values
        assert isinstance(on_device, jax.Array)
        np.testing.assert_array_equal(on_device, last)
        listed = processor([image, image], return_tensors=None).pixel_values
        assert [a.shape for a in listed] == [(16, 20, 3)] * 2
        assert processor.preprocess(image).pixel_values.shape == last.shape

    def test_repr_is_the_call_that_makes_it(self, tmp_path):
        assert repr(SiglipImageProcessorPil()) == "SiglipImageProcessorPil()"
        made = SiglipImageProcessorPil(
            size=(16, 20), image_mean=[0.1, 0.2, 0.3], resample=PIL.Image.Resampling.BILINEAR
        )
        expected = "size={'height': 16, 'width': 20}, resample=2, image_mean=(0.1, 0.2, 0.3)"
        assert repr(made) == f"SiglipImageProcessorPil({expected})"
        made.save_pretrained(tmp_path)
        assert repr(SiglipImageProcessorPil.from_pretrained(tmp_path)) == repr(made)
        first = SiglipImageProcessor(do_rescale=None, data_format="channels_first")
        assert repr(first) == "SiglipImageProcessor(do_rescale=None, data_format='channels_first')"

    def test_attributes(self):
        processor = SiglipImageProcessorPil(size=24)
        assert processor.size == {"shortest_edge": 24}
        assert processor.image_mean == (0.5, 0.5, 0.5)
        with pytest.raises(AttributeError, match="no attribute 'sise'"):
            _ = processor.sise


class TestFiles:
    OPTIONS = {"size": {"height": 20, "width": 24}, "resample": 2, "image_mean": [0.1, 0.2, 0.3], "do_normalize": True}

    @pytest.mark.parametrize("nested", [True, False])
    def test_we_read_the_reference(self, reference_class, tmp_path, nested):
        with quiet_reference():
            reference = reference_class(**self.OPTIONS)
            reference.save_pretrained(tmp_path)
            if nested:
                settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
                (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
                (tmp_path / "preprocessor_config.json").unlink()
            expected = reference(noise(30, 40), return_tensors="np")["pixel_values"]
        ours = SiglipImageProcessorPil.from_pretrained(tmp_path)
        np.testing.assert_array_equal(ours(noise(30, 40), data_format="channels_first").pixel_values, expected)

    def test_the_reference_reads_ours(self, reference_class, tmp_path):
        ours = SiglipImageProcessorPil(**self.OPTIONS, do_center_crop=True, crop_size=18)
        ours.save_pretrained(tmp_path)
        with quiet_reference():
            expected = reference_class.from_pretrained(tmp_path)(noise(30, 40), return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(ours(noise(30, 40), data_format="channels_first").pixel_values, expected)

    def test_version_4(self, tmp_path):
        settings = {"do_convert_rgb": None, "image_processor_type": "SiglipImageProcessor", "resample": 3}
        settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_resize": True, "rescale_factor": 1 / 255}
        settings |= {"processor_class": "SiglipProcessor", "size": {"height": 16, "width": 16}, "device": None}
        settings |= {"data_format": "channels_first"}  # as the classes on torchvision wrote it
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        ours = SiglipImageProcessorPil.from_pretrained(tmp_path)
        assert ours(picture("RGBA", 20, 20)).pixel_values.shape == (1, 16, 16, 3)
        written = ours.to_dict()
        assert written["processor_class"] == "SiglipProcessor"
        assert written["data_format"] == "channels_first"
        assert written["do_convert_rgb"] is True

    def test_feature_extractor(self, tmp_path):
        settings = {"feature_extractor_type": "SiglipFeatureExtractor", "size": 30, "do_resize": True}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        ours = SiglipImageProcessor.from_pretrained(tmp_path, do_normalize=False)
        assert ours.size == {"shortest_edge": 30}
        assert ours.do_normalize is False
        assert "feature_extractor_type" not in ours.to_dict()

    @pytest.mark.parametrize("kind", [SiglipImageProcessor, SiglipImageProcessorPil])
    def test_dictionary_round_trip(self, kind):
        ours = kind(size=30, do_pad=True, pad_size=40, image_mean=0.5)
        assert kind.from_dict(ours.to_dict()).to_dict() == ours.to_dict()
        assert json.loads(json.dumps(ours.to_dict())) == ours.to_dict()
        assert ours.to_dict()["image_processor_type"] == "SiglipImageProcessor"

    def test_missing_broken_and_foreign(self, tmp_path: Path):
        with pytest.raises(FileNotFoundError, match="no preprocessor_config.json"):
            SiglipImageProcessorPil.from_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text("[")
        with pytest.raises(
            ValueError, match="preprocessor_config.json: the file must hold a JSON object, got invalid JSON"
        ):
            SiglipImageProcessorPil.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match="Siglip2ImageProcessor, which makes patches"):
            SiglipImageProcessorPil.from_dict({"image_processor_type": "Siglip2ImageProcessor"})


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"sizes": 3}, "unknown argument 'sizes'; did you mean 'size'"),
            ({"do_normalise": False}, "did you mean 'do_normalize'"),
            ({"size": {"height": 3}}, "size must be an integer, .* got {'height': 3}"),
            ({"size": 0}, "size must hold integers of at least 1"),
            ({"size": "224"}, "size must be an integer, .* got '224'"),
            ({"size": {"longest_edge": 9}}, "size must have the keys height and width"),
            ({"size": None}, "size must have a value with do_resize=True"),
            ({"resample": None}, "resample must have a value with do_resize=True"),
            ({"resample": 9}, "resample must be one of Pillow's filters, 0 to 5, got 9"),
            ({"do_center_crop": True}, "crop_size must have a value"),
            ({"image_mean": [0.5]}, "image_mean must have 3 numbers, one per channel, got 1"),
            ({"image_mean": "0.5"}, "image_mean must be a number"),
            ({"image_std": [0, 0, 0]}, "image_std must not contain 0, got"),
            ({"do_pad": True, "pad_size": 9}, "pad_size must be at least 224x224, got 9x9"),
            ({"data_format": "NCHW"}, "data_format must be one of 'channels_first', 'channels_last'"),
            ({"return_tensors": "pt"}, "return_tensors must be one of"),
        ],
    )
    @pytest.mark.parametrize("kind", [SiglipImageProcessor, SiglipImageProcessorPil])
    def test_options(self, kind, options, message):
        with pytest.raises(ValueError, match=message) as raised:
            kind()(noise(20, 30), **options)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            ([], "images must hold at least one image"),
            (None, "image must be a path"),
            ([1, 2], "got a int; pass several images as a list"),
            (np.zeros((8, 5, 2), np.uint8), "pass input_data_format"),
            (np.zeros((4,), np.uint8), r"got the shape \(4,\)"),
            (np.zeros((0, 5, 3), np.uint8), r"got the shape \(0, 5, 3\)"),
            (np.full((8, 5, 3), -1.5), r"image must be in \[0, 1\] if it has fractions, got -1.5"),
            (np.full((8, 5, 3), 300, np.uint16), r"image must be in \[0, 255\] if it has whole numbers, got 300"),
            (np.full((8, 5, 3), np.nan), r"image must be in \[0, 1\] if it has fractions, got nan"),
            (
                np.full((8, 5, 3), 0.5),
                r"image must have values in \[0, 255\] .* got floats in \[0, 1\]; pass do_rescale=False",
            ),
            (np.ones((8, 5), bool), r"image must have values in \[0, 255\] .* got bools; pass do_rescale=False"),
            (np.full((8, 5, 4), 7.0), r"image must be in \[0, 1\] if it is float RGBA, got 7.0"),
        ],
    )
    def test_images(self, images, message):
        with pytest.raises(ValueError, match=message):
            SiglipImageProcessorPil()(images)

    def test_black_floats_are_no_mistake(self):
        assert (SiglipImageProcessorPil()(np.zeros((8, 5, 3))).pixel_values == -1).all()

    @pytest.mark.parametrize("kind", [SiglipImageProcessor, SiglipImageProcessorPil])
    def test_unequal_sizes(self, kind):
        with pytest.raises(ValueError, match=r"\(6, 5, 3\), \(8, 5, 3\).*pass do_resize=True or do_pad=True"):
            kind(do_resize=False)([noise(8, 5), noise(6, 5)])
