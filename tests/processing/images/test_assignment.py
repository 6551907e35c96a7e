"""Options assigned to an image processor, and None in its file, have the effect that they have in the reference."""

import json

import numpy as np
import pytest
import transformers

from siglip_jax.data.transform import Transform
from siglip_jax.inference.preprocessing import describe, lines_of
from siglip_jax.processing import Siglip2ImageProcessor, SiglipImageProcessor, SiglipImageProcessorPil
from tests.support.images import noise
from tests.support.spiece import quiet_reference

IMAGE = noise(41, 58)
ASSIGNED = [
    {"do_rescale": False},
    {"do_normalize": None},
    {"size": {"height": 20, "width": 30}},
    {"size": 24},
    {"size": (24, 31), "resample": 0},
    {"do_center_crop": True, "crop_size": 20, "size": {"shortest_edge": 33}},
    {"image_mean": [0.1, 0.2, 0.3], "image_std": (0.4, 0.5, 0.6)},
    {"rescale_factor": 1 / 127.5, "do_resize": False},
    {"do_pad": True, "pad_size": {"height": 300, "width": 310}},
]


def reference(name: str, **options):
    with quiet_reference():
        return getattr(transformers, name)(**options)


def assign(processor, options) -> None:
    for name, value in options.items():
        setattr(processor, name, value)


@pytest.mark.parametrize("options", ASSIGNED)
@pytest.mark.parametrize("kind", [SiglipImageProcessorPil, SiglipImageProcessor])
def test_an_assigned_option_takes_effect_as_in_the_reference(kind, options):
    ours, theirs = kind(), reference("SiglipImageProcessorPil")
    assign(ours, options)
    assign(theirs, options)
    with quiet_reference():
        expected = theirs(IMAGE, return_tensors="np")["pixel_values"]
    found = ours(IMAGE, data_format="channels_first").pixel_values
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize("options", [{"do_rescale": False}, {"max_num_patches": 49}, {"patch_size": 14, "resample": 0}])
def test_an_assigned_option_of_patches_takes_effect_as_in_the_reference(options):
    ours, theirs = Siglip2ImageProcessor(), reference("Siglip2ImageProcessorPil")
    assign(ours, options)
    assign(theirs, options)
    with quiet_reference():
        expected = theirs(IMAGE, return_tensors="np")
    for name, found in ours(IMAGE).items():
        np.testing.assert_array_equal(found, expected[name])


def test_an_assigned_option_is_read_back_and_saved(tmp_path):
    ours = SiglipImageProcessorPil()
    ours.do_rescale, ours.size = False, 24
    assert (ours.do_rescale, ours.size) == (False, {"shortest_edge": 24})
    ours.save_pretrained(tmp_path)
    assert SiglipImageProcessorPil.from_pretrained(tmp_path).to_dict() == ours.to_dict()
    with quiet_reference():
        theirs = transformers.SiglipImageProcessorPil.from_pretrained(tmp_path)
        expected = theirs(IMAGE, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(ours(IMAGE, data_format="channels_first").pixel_values, expected)


def test_an_assigned_option_takes_effect_in_the_engine_and_in_training(siglip):
    before = siglip.encode_image(IMAGE)
    siglip.processor.image_processor.image_mean = (0.1, 0.2, 0.3)
    (pixels,) = siglip.pixels(IMAGE)
    np.testing.assert_array_equal(
        pixels, SiglipImageProcessorPil(size=(32, 32), image_mean=(0.1, 0.2, 0.3))(IMAGE).pixel_values[0]
    )
    assert np.abs(siglip.encode_image(IMAGE) - before).max() > 1e-4
    assert Transform(siglip.processor, captions=False).mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("kind", [SiglipImageProcessorPil, SiglipImageProcessor, Siglip2ImageProcessor])
def test_an_assignment_of_an_unknown_or_impossible_option_is_an_error(kind):
    processor = kind()
    with pytest.raises(ValueError, match=f"^{kind.__name__}: unknown argument 'do_resise'; did you mean 'do_resize'"):
        processor.do_resise = False
    processor.image_std = 0.0
    with pytest.raises(ValueError, match="^image_std must not contain 0, got 0.0$"):
        processor(IMAGE)


def test_an_assigned_size_is_checked_at_once():
    with pytest.raises(ValueError, match="^size must hold integers of at least 1"):
        SiglipImageProcessorPil().size = 0


@pytest.mark.parametrize("name", ["do_resize", "do_rescale", "do_normalize"])
@pytest.mark.parametrize("patches", [False, True])
def test_none_in_a_file_switches_a_step_off_as_in_the_reference(tmp_path, name, patches):
    kind = Siglip2ImageProcessor if patches else SiglipImageProcessorPil
    settings = {"image_processor_type": kind.file_type, name: None}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    image = noise(32, 48)
    with quiet_reference():
        theirs = getattr(transformers, kind.file_type + "Pil").from_pretrained(tmp_path)
        expected = theirs(image, return_tensors="np")["pixel_values"]
    ours = kind.from_pretrained(tmp_path)
    assert getattr(ours, name) is None
    found = ours(image).pixel_values if patches else ours(image, data_format="channels_first").pixel_values
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    assert kind.from_dict(ours.to_dict()).to_dict() == ours.to_dict()
    assert ours.to_dict()[name] is None


def test_none_in_a_file_that_a_step_needs_is_an_error():
    with pytest.raises(ValueError, match="^image_mean must have a value with do_normalize=True, got None$"):
        SiglipImageProcessorPil.from_dict({"image_mean": None})
    with pytest.raises(ValueError, match="^size must have a value with do_resize=True, got None$"):
        SiglipImageProcessorPil.from_dict({"size": None})
    assert SiglipImageProcessorPil.from_dict({"size": None, "do_resize": False})(IMAGE).pixel_values.shape == (
        1,
        41,
        58,
        3,
    )


@pytest.mark.parametrize("name", ["do_resize", "do_rescale", "do_normalize"])
@pytest.mark.parametrize("patches", [False, True])
def test_none_given_to_the_class_switches_a_step_off_as_in_the_reference(tmp_path, name, patches):
    kind = Siglip2ImageProcessor if patches else SiglipImageProcessorPil
    image = noise(32, 48)
    with quiet_reference():
        theirs = getattr(transformers, kind.file_type + "Pil")(**{name: None})
        expected = theirs(image, return_tensors="np")["pixel_values"]
    ours = kind(**{name: None})
    assert getattr(ours, name) is None
    found = ours(image).pixel_values if patches else ours(image, data_format="channels_first").pixel_values
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    ours.save_pretrained(tmp_path)
    assert getattr(kind.from_pretrained(tmp_path), name) is None


def test_none_given_to_the_class_that_a_step_needs_is_an_error():
    with pytest.raises(ValueError, match="^image_std must have a value with do_normalize=True, got None$"):
        Siglip2ImageProcessor(image_std=None)
    with pytest.raises(ValueError, match="^size must have a value with do_resize=True, got None$"):
        SiglipImageProcessorPil(size=None)
    assert SiglipImageProcessorPil(do_convert_rgb=None).do_convert_rgb is True


def test_a_step_switched_off_by_none_is_described_so(siglip):
    siglip.processor.image_processor.do_normalize = None
    facts = describe(siglip, model_name="tiny", texts=False)
    assert facts["image"]["do_normalize"] is False
    assert "not normalised" in dict(lines_of(facts))["images"]
