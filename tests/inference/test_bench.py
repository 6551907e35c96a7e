"""Measurements of a model: they are of the code that ran, and agree with each other."""

import io
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from siglip_jax.inference.bench import (
    FEWEST,
    IMAGE_SIZE,
    IMAGES,
    first_embedding,
    jpeg,
    preparation,
    repeated,
    towers,
)
from siglip_jax.inference.load import load
from siglip_jax.models.cost import image_flops, text_flops
from tests.support.tiny_checkpoint import picture, write_checkpoint


@pytest.mark.slow
def test_the_measurements_of_the_towers_agree(shared_siglip):
    speeds = list(towers(shared_siglip, [3, 1], 0.01))
    assert [(speed.what, speed.batch_size) for speed in speeds] == [
        ("images", 3),
        ("images", 1),
        ("texts", 3),
        ("texts", 1),
    ]
    config = shared_siglip.config
    flops = {"images": image_flops(config.vision_config), "texts": text_flops(config.text_config)}
    for speed in speeds:
        assert 0 < speed.low <= speed.seconds <= speed.high
        assert speed.per_second == pytest.approx(speed.batch_size / speed.seconds)
        assert speed.gflops_per_second == pytest.approx(speed.per_second * flops[speed.what] / 1e9)
        assert speed.repetitions >= FEWEST


def test_a_measurement_is_of_the_whole_batch(shared_siglip, monkeypatch):
    rows = []
    real = type(shared_siglip).embed_pixels

    def counted(self, *arrays, batch_size):
        rows.append((len(arrays[0]), batch_size))
        return real(self, *arrays, batch_size=batch_size)

    monkeypatch.setattr(type(shared_siglip), "embed_pixels", counted)
    speeds = list(towers(shared_siglip, [3, 1], 1e-9))
    assert rows == [(3, 3)] * (1 + FEWEST) + [(1, 1)] * (1 + FEWEST)
    assert [speed.repetitions for speed in speeds[:2]] == [FEWEST, FEWEST]


def test_time_is_of_the_calls_after_the_first():
    calls = []

    def slow_at_first():
        calls.append(None)
        time.sleep(0.2 if len(calls) == 1 else 0.01)

    taken = repeated(slow_at_first, 0.05)
    assert len(taken) == len(calls) - 1
    assert min(taken) >= 0.01 and sum(taken) >= 0.05 and sum(taken[:-1]) < 0.05
    assert len(repeated(lambda: time.sleep(0.02), 1e-9)) == FEWEST


def test_images_are_decoded_from_a_file_of_the_stated_size(shared_siglip):
    with PIL.Image.open(io.BytesIO(jpeg())) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", IMAGE_SIZE, "RGB")
    speed = preparation(shared_siglip, 0.01)
    assert (speed.what, speed.batch_size, speed.gflops_per_second) == ("image preparation", IMAGES, None)
    assert speed.per_second == pytest.approx(IMAGES / speed.seconds)


@pytest.mark.slow
def test_peak_memory_grows_with_what_is_held():
    """In a process of its own, whose peak is small: that of the tests is gigabytes, and would be held twice."""
    code = """
import numpy as np
from siglip_jax.inference.bench import peak_memory

before = peak_memory()["host"]
held = np.ones(before // 2, np.uint8)  # beyond the peak, whatever else was freed meanwhile
more = np.ones(before, np.uint8)
print(before, held.nbytes + more.nbytes, peak_memory()["host"])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    before, held, after = map(int, ran.stdout.split())
    assert 10**8 < before < held <= after, ran.stderr


def test_ready_arrays_have_the_embeddings_of_what_they_were_made_of(shared_siglip):
    pictures, texts = [picture(seed) for seed in range(4)], [f"a photo of {i} cats" for i in range(4)]
    inputs = shared_siglip.processor(text=texts, images=pictures)
    pixels, ids = np.asarray(inputs["pixel_values"]), np.asarray(inputs["input_ids"])
    by_three = {"batch_size": 3}
    np.testing.assert_array_equal(
        shared_siglip.embed_pixels(pixels, **by_three), shared_siglip.encode_image(pictures, **by_three)
    )
    np.testing.assert_array_equal(
        shared_siglip.embed_tokens(ids, **by_three), shared_siglip.encode_text(texts, **by_three)
    )
    assert shared_siglip.embed_pixels(pixels[:0]).shape == (0, shared_siglip.config.vision_config.hidden_size)


@pytest.mark.slow
def test_a_model_of_variable_resolution(tmp_path):
    """All batches have one row, so that the first embedding compiles the only program."""
    siglip = load(write_checkpoint(tmp_path, flexible=True))
    assert first_embedding(siglip) > 2 * first_embedding(siglip) > 0
    images = next(towers(siglip, [1], 1e-9))
    flops = image_flops(siglip.config.vision_config, 20)  # patches of its processor; the position table has 16
    assert images.gflops_per_second == pytest.approx(images.per_second * flops / 1e9)
    pictures = [picture(seed, (20 + 9 * seed, 40)) for seed in range(3)]
    processor = siglip.processor.image_processor
    inputs = processor(pictures)
    arrays = [np.asarray(inputs[name]) for name in processor.model_input_names]
    one = {"batch_size": 1}
    np.testing.assert_array_equal(siglip.embed_pixels(*arrays, **one), siglip.encode_image(pictures, **one))
