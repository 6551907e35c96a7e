"""Patches for training are the image processor's, for images of any form, and steps of several lengths lose none."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from siglip_jax.data.example import Example
from siglip_jax.data.flexible import FlexibleTransform
from siglip_jax.data.pipeline import Pipeline
from siglip_jax.data.transform import normalize_pixels
from siglip_jax.processing import Siglip2ImageProcessor, SiglipProcessor
from siglip_jax.training.naflex import image_inputs, padding_of
from tests.support.data_sets import Memory, saved

SIZES = [(1, 1), (30, 8000), (8000, 30), (40, 30), (17, 91)]  # width, height
LENGTHS = ((9, 8), (20, 4), (64, 4))


@pytest.fixture(scope="module")
def transform(processor):
    images = Siglip2ImageProcessor(
        patch_size=8, max_num_patches=20, image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.5, 1)
    )
    return FlexibleTransform(SiglipProcessor(images, processor.tokenizer, max_length=16))


def images_of(seed=0):
    rng = np.random.default_rng(seed)
    return [PIL.Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in SIZES]


def first(pipeline, count, start=0):
    batches = pipeline.batches(start)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


@pytest.mark.parametrize("length", [6, 20, 130])
def test_patches_are_those_of_the_image_processor(transform, length):
    images, at = images_of(), transform.at(length)
    rows = [at.row(Example(saved(x), ("a",), None, "x"), np.random.default_rng(0)) for x in images]
    arrays = at.stack(rows)
    assert arrays["pixels"].dtype == np.uint8 and arrays["pixels"].shape == (len(images), length, 192)
    normal = normalize_pixels(jnp.asarray(arrays["pixels"]), at.mean, at.std, at.rescale_factor)
    pixels, mask, grids = image_inputs(normal, arrays)
    theirs = transform._processor.image_processor(images, max_num_patches=length)
    np.testing.assert_array_equal(grids, theirs["spatial_shapes"])
    np.testing.assert_array_equal(mask, theirs["pixel_attention_mask"])
    np.testing.assert_allclose(pixels, theirs["pixel_values"], atol=1e-6)
    used = theirs["pixel_attention_mask"].mean()
    np.testing.assert_allclose(float(padding_of(arrays)["padding"]), 1 - used, atol=1e-6)
    examples = [Example(saved(x), ("a",), None, "x") for x in images] + [Example(b"none", ("a",), None, "x")]
    np.testing.assert_allclose(at.padding(examples), 1 - used, atol=1e-12)


def test_one_image_is_resized_to_the_length_of_the_transform(transform):
    arrays = transform(Example(saved(images_of()[3]), ("a",), None, "x"), np.random.default_rng(0))
    assert arrays["pixels"].shape == (20, 192) and arrays["spatial_shapes"].prod() <= 20


def test_images_of_one_size_are_refused(processor):
    with pytest.raises(ValueError, match="images of variable resolution, got a SiglipImageProcessorPil; use Transform"):
        FlexibleTransform(processor)


def test_steps_of_several_lengths_lose_and_double_no_example(transform):
    pipeline = Pipeline([(Memory(32), 1.0)], transform, batch_size=8, lengths=LENGTHS, seed=1)
    batches = first(pipeline, 12)  # 4 cycles of 16 examples: two epochs
    shapes = [batch.arrays["pixels"].shape[:2][::-1] for batch in batches]
    assert sorted(shapes) == sorted(LENGTHS * 4) and shapes[:3] != shapes[3:6] or shapes[3:6] != shapes[6:9]
    index = np.concatenate([batch.arrays["index"] for batch in batches]).reshape(2, 32)
    assert (np.sort(index, axis=1) == np.arange(32)).all() and (index[0] != index[1]).any()
    late = first(pipeline, 5, start=7)
    for one, other in zip(late, batches[7:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, one.arrays, other.arrays)
    shared = [
        first(
            Pipeline(
                [(Memory(32), 1.0)],
                transform,
                batch_size=8,
                lengths=LENGTHS,
                seed=1,
                process_index=process,
                process_count=2,
            ),
            6,
        )
        for process in range(2)
    ]
    for batch, *parts in zip(batches, *shared, strict=False):
        for name, array in batch.arrays.items():
            np.testing.assert_array_equal(np.concatenate([part.arrays[name] for part in parts]), array, name)
    other = Pipeline([(Memory(32), 1.0)], transform, batch_size=8, lengths=LENGTHS[:2], seed=1)
    assert other.fingerprint != pipeline.fingerprint


@pytest.mark.slow
def test_worker_processes_make_the_same_batches(transform):
    options = {"batch_size": 8, "lengths": LENGTHS, "seed": 1}
    alone, workers = (first(Pipeline([(Memory(32), 1.0)], transform, workers=n, **options), 4) for n in (0, 2))
    for one, other in zip(alone, workers, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one.arrays, other.arrays)
