"""Pixels are the image processor's, bit for bit; captions, labels, augmentation, and images that are refused."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from siglip_jax.data.example import Example, image_id
from siglip_jax.data.transform import Transform, normalize_pixels, random_box
from siglip_jax.processing import (
    Siglip2ImageProcessor,
    Siglip2Tokenizer,
    SiglipImageProcessor,
    SiglipImageProcessorPil,
    SiglipProcessor,
)
from tests.support.data_sets import encoded, saved
from tests.support.gemma_tokenizer import train
from tests.support.images import MODES, SIZES, picture

RAW = {"do_rescale": False, "do_normalize": False}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def example(image, *texts: str, label: int | None = None) -> Example:
    return Example(image, texts or ("a photo of a cat",), label, "shard.tar:7.jpg")


def with_options(processor: SiglipProcessor, kind=SiglipImageProcessorPil, **options) -> SiglipProcessor:
    return SiglipProcessor(kind(**options), processor.tokenizer, max_length=16)


def files(mode: str, size: tuple[int, int]) -> list[bytes]:
    image = picture(mode, *size)
    image = PIL.Image.fromarray(np.asarray(image) / np.float32(2000)) if mode == "F" else image
    out = []
    for kind in ("PNG", "TIFF", "JPEG", "WEBP"):
        try:
            out.append(saved(image, kind))
        except (OSError, KeyError, ValueError):
            continue  # the format has no such mode
    return out


@pytest.mark.parametrize("mode", MODES)
def test_pixels_are_the_processors(processor, mode):
    transform = Transform(processor, captions=False)
    tried = 0
    for size in SIZES[:5]:
        for data in files(mode, size):
            pixels = transform(example(data), rng())["pixels"]
            reference = processor.image_processor(data, **RAW)["pixel_values"][0]
            assert pixels.dtype == reference.dtype == np.uint8 and pixels.shape == (32, 32, 3)
            np.testing.assert_array_equal(pixels, reference)
            tried += 1
    assert tried >= 5


def test_orientation_of_the_camera_is_followed(processor):
    exif = PIL.Image.Exif()
    exif[274] = 6
    data = saved(PIL.Image.fromarray(np.arange(48 * 20 * 3, dtype=np.uint8).reshape(20, 48, 3)), "JPEG", exif=exif)
    pixels = Transform(processor, captions=False)(example(data), rng())["pixels"]
    np.testing.assert_array_equal(pixels, processor.image_processor(data, **RAW)["pixel_values"][0])


@pytest.mark.parametrize(
    "options",
    [
        {"size": (20, 44)},
        {"size": {"shortest_edge": 40}, "crop_size": (32, 24), "do_center_crop": True},
        {"size": (32, 32), "resample": 2},
        {"size": (40, 40), "crop_size": (48, 48), "do_center_crop": True},
    ],
)
@pytest.mark.parametrize("kind", [SiglipImageProcessor, SiglipImageProcessorPil])
def test_options_of_the_processor(processor, kind, options):
    processor = with_options(processor, kind, **options)
    transform = Transform(processor, captions=False)
    pixels = transform(example(encoded(size=(61, 50))), rng())["pixels"]
    reference = SiglipImageProcessorPil(**options)(encoded(size=(61, 50)), **RAW)["pixel_values"][0]
    np.testing.assert_array_equal(pixels, reference)
    assert pixels.shape == (transform.height, transform.width, 3)


def test_pixels_given_as_an_array(processor):
    array = np.random.default_rng(0).integers(0, 256, (3, 50, 3), np.uint8)  # three rows are no channels
    pixels = Transform(processor, captions=False)(example(array), rng())["pixels"]
    expected = np.asarray(PIL.Image.fromarray(array).resize((32, 32), PIL.Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_mean": (0.48, 0.46, 0.41), "image_std": (0.27, 0.26, 0.28)},
        {"image_mean": 0.4, "image_std": 0.3, "rescale_factor": 1 / 127},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": (100, 110, 120), "image_std": (50, 60, 70)},
        RAW,
    ],
)
def test_normalized_pixels_are_the_processors(processor, options):
    processor = with_options(processor, size=(32, 32), **options)
    transform = Transform(processor, captions=False)
    pixels = np.stack([transform(example(encoded(i)), rng())["pixels"] for i in range(3)])
    finish = jax.jit(lambda x: normalize_pixels(x, transform.mean, transform.std, transform.rescale_factor))
    expected = processor.image_processor([encoded(i) for i in range(3)])["pixel_values"]
    ours = finish(jnp.asarray(pixels))
    assert ours.dtype == jnp.float32
    assert np.abs(np.asarray(ours) - expected).max() <= 1e-6 * max(1.0, np.abs(expected).max())
    np.testing.assert_array_equal(
        normalize_pixels(jnp.asarray(pixels[0]), transform.mean, transform.std).shape, (32, 32, 3)
    )


def test_every_value_is_normalized_as_the_processor_does(processor):
    transform = Transform(processor)
    every = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    ours = np.asarray(normalize_pixels(jnp.asarray(every), transform.mean, transform.std, transform.rescale_factor))
    theirs = processor.image_processor(every, do_resize=False, input_data_format="channels_last")["pixel_values"][0]
    assert np.abs(ours - theirs).max() <= 1e-6


def test_texts_are_the_processors(processor):
    transform = Transform(processor)
    for text in ["a photo of a cat", "Zwei HUNDE, ünïcode 猫!", "word " * 50, "\ufffd"]:
        ids = transform(example(encoded(), text), rng())["input_ids"]
        assert ids.dtype == np.int32 and ids.shape == (16,)
        np.testing.assert_array_equal(ids, processor(text=text, truncation=True)["input_ids"][0])
    rows = [transform.row(example(encoded(i), text), rng()) for i, text in enumerate(["a cat", "two dogs on a beach"])]
    together = transform.stack(rows)["input_ids"]
    np.testing.assert_array_equal(together, processor(text=["a cat", "two dogs on a beach"])["input_ids"])


def test_a_copy_for_another_process_does_the_same(processor, tmp_path):
    gemma = Siglip2Tokenizer.from_pretrained(train(tmp_path / "tokenizer.json"), model_max_length=16)
    for tokenizer in (processor.tokenizer, gemma):
        transform = Transform(SiglipProcessor(processor.image_processor, tokenizer, max_length=16), augment="crop")
        copy = pickle.loads(pickle.dumps(transform))
        given = example(encoded(), "A photo of a cat, größer", "two dogs")
        ours, theirs = transform(given, rng(3)), copy(given, rng(3))
        assert all((ours[name] == theirs[name]).all() for name in ours) and len(ours) == 3


def test_one_of_several_captions_is_drawn(processor):
    transform = Transform(processor)
    drawn = [transform.row(example(encoded(), "a", " ", "b", "c", ""), rng(i)).text for i in range(300)]
    assert {text: drawn.count(text) > 70 for text in set(drawn)} == {"a": True, "b": True, "c": True}
    assert drawn == [transform.row(example(encoded(), "a", " ", "b", "c", ""), rng(i)).text for i in range(300)]


@pytest.mark.parametrize("texts", [(), ("",), (" \n", "\t")])
def test_no_caption(processor, texts):
    with pytest.raises(ValueError, match=r"^shard.tar:7.jpg: an example must have a caption, got none$"):
        Transform(processor)(Example(encoded(), texts, 1, "shard.tar:7.jpg"), rng())
    assert set(Transform(processor, captions=False)(Example(encoded(), texts, 1, ""), rng())) == {"pixels"}


def test_a_caption_that_is_no_text(processor):
    with pytest.raises(
        ValueError, match="shard.tar:7.jpg: a caption must be text of valid Unicode, got a lone surrogate"
    ):
        Transform(processor)(example(encoded(), "half \ud83d"), rng())


def test_labels(processor):
    transform = Transform(processor, captions=False, labels=True)
    label = transform(example(encoded(), label=7), rng())["label"]
    assert label == 7 and label.dtype == np.int32 and label.shape == ()
    with pytest.raises(
        ValueError, match="shard.tar:7.jpg: an example must have a label, got no index or name of a class"
    ):
        transform(example(encoded()), rng())


def test_images_that_are_refused(processor):
    transform = Transform(processor, max_pixels=2000)
    for data, message in [
        (encoded()[:400], r"image must be complete, got broken or truncated data \(.*\)"),
        (b"", "data must be an image that Pillow can read, got no bytes"),
        (b"GIF89a", ".*image.*"),
        (encoded(size=(50, 41)), "image must have at most 2000 pixels, got 2050"),
        (saved(PIL.Image.new("1", (14000, 14000))), "image must have at most 2000 pixels, got more"),
    ]:
        with pytest.raises(ValueError, match=rf"^shard.tar:7.jpg: ({message})$"):
            transform(example(data), rng())
    assert transform(example(encoded(size=(50, 40))), rng())["pixels"].shape == (32, 32, 3)


def test_flip(processor):
    plain = Transform(processor)(example(encoded()), rng())["pixels"]
    transform = Transform(processor, augment="flip")
    seen = [transform(example(encoded()), rng(i))["pixels"] for i in range(40)]
    flipped = [(pixels == plain[:, ::-1]).all() for pixels in seen]
    assert all(flip or (pixels == plain).all() for flip, pixels in zip(flipped, seen, strict=True))
    assert 10 < sum(flipped) < 30


@pytest.mark.parametrize(("augment", "flips"), [("crop", False), ("crop_flip", True)])
def test_crop(processor, augment, flips):
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 200, axis=0).repeat(3, axis=2)
    transform = Transform(processor, augment=augment)
    rows = [transform(example(ramp), rng(i))["pixels"][16, :, 0].astype(int) for i in range(40)]
    spans = [row[-1] - row[0] for row in rows]
    assert len(set(spans)) > 10 and all(100 < abs(span) < 200 for span in spans)
    assert any(span < 0 for span in spans) == flips
    again = [transform(example(ramp), rng(i))["pixels"][16, :, 0] for i in range(40)]
    assert (np.stack(rows) == np.stack(again)).all()


@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (200, 200), (1, 1), (3, 2), (1, 5000)])
def test_random_box(width, height):
    boxes = [random_box(rng(i), width, height, 0.5) for i in range(300)]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
    shares = np.array([(r - a) * (b - t) / (width * height) for a, t, r, b in boxes])
    if min(width, height) >= 200:
        assert 0.49 < shares.min() < 0.55 and shares.max() > 0.9
        assert len(set(boxes)) > 250


def test_impossible_options(processor):
    for options, message in [
        ({"augment": "mixup"}, "augment must be one of 'none', 'flip', 'crop', 'crop_flip', got 'mixup'"),
        ({"min_area": 0.0}, "min_area must be above 0 and up to 1, got 0.0"),
        ({"min_area": 1.5}, "min_area must be above 0 and up to 1, got 1.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            Transform(processor, **options)
    for options, message in [
        ({"do_resize": False}, "must resize, got do_resize=False"),
        (
            {"size": {"shortest_edge": 32}},
            "size must have height and width, or crop_size be set, so that images stack, got",
        ),
        ({"do_pad": True}, "must not pad, got do_pad=True"),
    ]:
        with pytest.raises(ValueError, match=message):
            Transform(with_options(processor, **options))
    with pytest.raises(ValueError, match="images of one size, got a Siglip2ImageProcessor of variable resolution"):
        Transform(SiglipProcessor(Siglip2ImageProcessor(), processor.tokenizer))


def test_rows_of_the_same_image_share_an_id(processor):
    """The same bytes, or the same pixels; the hash of a file does not depend on the process."""
    transform = Transform(processor)
    pixels = np.zeros((8, 8, 3), np.uint8)
    images = [encoded(0), encoded(1), bytes(bytearray(encoded(0))), pixels, pixels.copy(), pixels.reshape(4, 16, 3)]
    rows = [transform.row(example(image, f"text {i}"), rng(i)) for i, image in enumerate(images)]
    ids = transform.stack(rows)["image_ids"]
    assert ids.dtype == np.int32
    assert [int(np.flatnonzero(ids == x)[0]) for x in ids] == [0, 1, 0, 3, 3, 5]
    assert image_id(b"siglip") == 0xA33597E4AD73A3D2
    assert "image_ids" not in Transform(processor, captions=False)(example(encoded(0)), rng())
