"""`Siglip2ImageProcessor` against the reference's PIL class, bit for bit; its files, and what it refuses."""

import contextlib
import json

import jax
import numpy as np
import PIL.Image
import pytest
import transformers

from siglip_jax.processing import Siglip2ImageProcessor, SiglipImageProcessorPil, SiglipProcessor, SiglipTokenizer
from siglip_jax.processing.images.siglip2 import grid_of
from tests.support.images import DEEP, MODES, edges, noise, picture, smooth
from tests.support.spiece import quiet_reference

pytestmark = pytest.mark.slow

SIZES = [(1, 1), (1, 83), (83, 1), (37, 64), (64, 37), (224, 100), (90, 300), (128, 128), (3, 2000), (2000, 3)]


@pytest.fixture(scope="module")
def reference_class():
    with quiet_reference():
        return transformers.Siglip2ImageProcessorPil


def same(reference_class, images, **options):
    """Asserts that no value differs from the reference's and returns ours."""
    with quiet_reference():
        expected = reference_class(**{"do_convert_rgb": True, **options})(images, return_tensors="np")
    found = Siglip2ImageProcessor(**options)(images)
    assert list(found) == ["pixel_values", "pixel_attention_mask", "spatial_shapes"] == list(expected)
    for name in found:
        assert found[name].dtype == (np.float32 if name == "pixel_values" else np.int32)
        np.testing.assert_array_equal(found[name], expected[name])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_modes_and_sizes(reference_class, mode):
    with pytest.warns(UserWarning, match="is clipped to 0 to 255") if mode in DEEP else contextlib.nullcontext():
        same(reference_class, [picture(mode, *size, seed=i) for i, size in enumerate(SIZES)])


@pytest.mark.parametrize("resample", range(6))
@pytest.mark.parametrize("make", [noise, smooth, edges])
def test_filters(reference_class, resample, make):
    images = [PIL.Image.fromarray(make(*size)) for size in ((61, 90), (300, 20), (16, 16))]
    same(reference_class, images, resample=resample, max_num_patches=49)


@pytest.mark.parametrize(("patch", "most"), [(16, 256), (14, 100), (16, 1024), (7, 3), (32, 1), (1, 50)])
def test_patches_and_their_number(reference_class, patch, most):
    images = [PIL.Image.fromarray(noise(*size)) for size in ((61, 90), (33, 5), (480, 640))]
    found = same(reference_class, images, patch_size=patch, max_num_patches=most)
    assert found.pixel_values.shape == (3, most, patch * patch * 3)
    grids = found.spatial_shapes.prod(1)
    assert (found.pixel_attention_mask.sum(1) == grids).all() and (grids <= most).all()


@pytest.mark.parametrize(
    "options",
    [{"do_rescale": False}, {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}, {"rescale_factor": 0.01}],
)
def test_normalisation(reference_class, options):
    same(reference_class, noise(50, 70), **options)


@pytest.mark.parametrize("shape", [(30, 20, 3), (3, 30, 20), (30, 20, 1), (30, 20, 4), (2, 30, 20, 3)])
def test_arrays(reference_class, shape):
    same(reference_class, np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def test_a_picture_of_whole_patches_need_not_be_resized(reference_class):
    found = same(reference_class, [noise(32, 48), noise(16, 16)], do_resize=False, max_num_patches=6)
    assert found.spatial_shapes.tolist() == [[2, 3], [1, 1]]


@pytest.mark.slow
def test_grids_equal_the_reference():
    from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

    random = np.random.default_rng(0)
    for _ in range(3000):
        height, width = (int(x) for x in np.exp(random.uniform(0, 10, 2)))
        patch, most = int(random.choice([1, 7, 14, 16, 32])), int(random.choice([1, 2, 49, 256, 576, 1024]))
        rows, columns = grid_of(height, width, patch, most)
        assert (rows * patch, columns * patch) == get_image_size_for_max_num_patches(height, width, patch, most)
        assert 1 <= rows * columns <= most


def test_kinds_of_arrays():
    images = [noise(20, 30), noise(30, 20)]
    plain = Siglip2ImageProcessor()(images)
    on_device = Siglip2ImageProcessor()(images, return_tensors="jax")
    lists = Siglip2ImageProcessor()(images, return_tensors=None)
    for name, value in plain.items():
        assert isinstance(on_device[name], jax.Array)
        np.testing.assert_array_equal(on_device[name], value)
        assert isinstance(lists[name], list)
        np.testing.assert_array_equal(np.stack(lists[name]), value)


PUBLISHED = {
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Siglip2ImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "max_num_patches": 64,
    "patch_size": 16,
    "processor_class": "Siglip2Processor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
}


def test_files_in_both_directions(reference_class, tmp_path, spiece):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
    SiglipTokenizer(spiece).save_pretrained(tmp_path)
    processor = SiglipProcessor.from_pretrained(tmp_path)
    assert type(processor.image_processor) is Siglip2ImageProcessor
    assert processor.image_processor.max_num_patches == 64
    image = picture("L", 40, 90)
    found = processor(images=image, text="a cat", max_num_patches=32)
    assert list(found) == ["input_ids", "pixel_values", "pixel_attention_mask", "spatial_shapes"]
    assert found.pixel_values.shape == (1, 32, 768)

    processor.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours/processor_config.json").read_text())["processor_class"] == "Siglip2Processor"
    with quiet_reference():
        reference = reference_class.from_pretrained(tmp_path / "ours")
        expected = reference(image, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(processor.image_processor(image).pixel_values, expected)
    with quiet_reference():
        reference.save_pretrained(tmp_path / "theirs")
    back = Siglip2ImageProcessor.from_pretrained(tmp_path / "theirs")
    np.testing.assert_array_equal(back(image).pixel_values, expected)


def test_a_file_of_the_other_kind_is_refused(tmp_path, spiece):
    with pytest.raises(ValueError, match="must be SiglipImageProcessor, got Siglip2ImageProcessor, which makes patch"):
        SiglipImageProcessorPil.from_dict(PUBLISHED)
    with pytest.raises(ValueError, match="must be Siglip2ImageProcessor, got SiglipImageProcessor, which makes whole"):
        Siglip2ImageProcessor.from_dict(SiglipImageProcessorPil().to_dict())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
    SiglipTokenizer(spiece).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="backend must be 'pil' or None .* got 'jax'"):
        SiglipProcessor.from_pretrained(tmp_path, backend="jax")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 0}, "patch_size must be an integer of at least 1, got 0"),
        ({"max_num_patches": 2.5}, "max_num_patches must be an integer of at least 1, got 2.5"),
        ({"size": 224}, "unknown argument 'size'.*known: .*max_num_patches"),
        ({"resample": 9}, "resample must be one of Pillow's filters, 0 to 5, got 9"),
        ({"do_resize": False}, "whole patches of 16 x 16 pixels with do_resize=False, got 30 x 48"),
        ({"do_resize": False, "patch_size": 6, "max_num_patches": 39}, "at most 39 patches .* got 5 x 8"),
        ({"image_std": 0.0}, "image_std must not contain 0, got 0.0"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        Siglip2ImageProcessor()(noise(30, 48), **options)
    assert "\n" not in str(caught.value)


def test_pictures_that_make_no_batch_are_refused():
    with pytest.raises(
        ValueError, match="one number of channels to be stacked, got patches of .* values; pass do_convert_rgb=True"
    ):
        Siglip2ImageProcessor()([picture("L", 20, 20), noise(20, 20)], do_convert_rgb=False, do_normalize=False)
    with pytest.raises(ValueError, match="images must hold at least one image, got an empty list"):
        Siglip2ImageProcessor()([])
