"""`SiglipProcessor`: what it does by default, its files in both directions, its errors."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest
import transformers

from siglip_jax.processing import (
    Batch,
    Siglip2ImageProcessor,
    SiglipImageProcessor,
    SiglipImageProcessorPil,
    SiglipProcessor,
    SiglipTokenizer,
)
from tests.support.images import noise, picture
from tests.support.spiece import quiet_reference

pytestmark = pytest.mark.filterwarnings("ignore:text has .* is cut")  # TEXTS hold one of 120 words
TEXTS = ["a photo of a cat", "A Photo of 2 CATS.", "", "a photo of two dogs " * 30]


@pytest.fixture
def processor(spiece: Path) -> SiglipProcessor:
    return SiglipProcessor(SiglipImageProcessorPil(size=(16, 16)), SiglipTokenizer(spiece))


def test_repr_names_both_parts(processor):
    expected = "SiglipProcessor(image_processor=SiglipImageProcessorPil(size={'height': 16, 'width': 16}), tokenizer="
    assert repr(processor) == f"{expected}{processor.tokenizer!r}, max_length=64)"


class TestCall:
    def test_both(self, processor):
        inputs = processor(text=TEXTS, images=[noise(20, 30), picture("RGBA", 30, 20)])
        assert isinstance(inputs, Batch)
        assert list(inputs) == ["input_ids", "pixel_values"]  # no mask
        assert (inputs.input_ids.shape, inputs.input_ids.dtype) == ((4, 64), np.int32)
        assert (inputs.pixel_values.shape, inputs.pixel_values.dtype) == ((2, 16, 16, 3), np.float32)
        assert inputs["input_ids"] is inputs.input_ids
        with pytest.raises(AttributeError, match="no 'attention_mask' in this batch"):
            _ = inputs.attention_mask

    def test_ids_are_those_of_the_reference_padded_and_cut(self, processor, spiece):
        with quiet_reference():
            reference = transformers.SiglipTokenizer(str(spiece))
            expected = reference(TEXTS, padding="max_length", truncation=True, max_length=64, return_tensors="np")
        np.testing.assert_array_equal(processor(text=TEXTS).input_ids, expected["input_ids"])

    def test_one_of_each(self, processor):
        assert list(processor(text="a cat")) == ["input_ids"]
        assert processor(text="a cat").input_ids.shape == (1, 64)
        assert list(processor(noise(20, 30))) == ["pixel_values"]
        with pytest.raises(ValueError, match="images or text must be given, got neither"):
            processor()

    def test_options_flat_and_nested(self, processor):
        out = processor(noise(20, 30), "a cat", max_length=9, size=(8, 4), return_attention_mask=True)
        assert out.input_ids.shape == out.attention_mask.shape == (1, 9)
        assert out.attention_mask.tolist() == [[1] * 3 + [0] * 6]
        assert out.pixel_values.shape == (1, 8, 4, 3)
        nested = processor(
            noise(20, 30), "a cat", text_kwargs={"max_length": 9}, images_kwargs={"data_format": "channels_first"}
        )
        assert nested.input_ids.shape == (1, 9)
        assert nested.pixel_values.shape == (1, 3, 16, 16)
        assert processor(text=["a cat", "a"], padding="longest").input_ids.shape == (2, 3)
        assert processor(text=["a cat", "a"], padding=False, return_tensors=None).input_ids[1] == [
            processor.tokenizer.convert_tokens_to_ids("▁a"),
            1,
        ]
        pair = processor(text="a cat", text_pair="a dog").input_ids
        np.testing.assert_array_equal(pair, processor(text=["a cat"], text_pair=["a dog"]).input_ids)

    def test_jax(self, processor):
        out = processor(noise(20, 30), "a cat", return_tensors="jax")
        assert isinstance(out.input_ids, jax.Array)
        assert isinstance(out.pixel_values, jax.Array)
        assert out.input_ids.dtype == np.int32

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"paddin": True}, "SiglipProcessor: unknown argument 'paddin'; did you mean 'padding'"),
            ({"text_kwargs": {"size": 3}}, "text_kwargs: unknown argument 'size'"),
            ({"images_kwargs": {"padding": True}}, "images_kwargs: unknown argument 'padding'"),
            ({"return_tensors": "pt"}, "return_tensors must be one of"),
        ],
    )
    def test_mistakes(self, processor, options, message):
        with pytest.raises(ValueError, match=message):
            processor(text="a", **options)

    def test_names_and_decoding(self, processor):
        assert processor.model_input_names == ["pixel_values", "input_ids"]
        ids = processor(text=["A cat!", "two dogs"]).input_ids
        assert processor.batch_decode(ids, skip_special_tokens=True) == ["a cat", "two dogs"]
        assert processor.decode(ids[0], skip_special_tokens=True) == "a cat"
        assert processor.decode(ids[0]).startswith("a cat</s></s>")

    def test_names_of_a_model_of_variable_resolution_are_those_of_a_call(self, spiece):
        processor = SiglipProcessor(Siglip2ImageProcessor(max_num_patches=4), SiglipTokenizer(spiece))
        inputs = processor(noise(20, 30), "a cat")
        assert processor.model_input_names == ["pixel_values", "pixel_attention_mask", "spatial_shapes", "input_ids"]
        assert sorted(processor.model_input_names) == sorted(inputs)

    def test_a_cut_text_causes_one_warning_unless_truncation_is_given(self, processor):
        processor(text=TEXTS, truncation=True)
        with pytest.warns(
            UserWarning, match=r"^text has \d+ tokens, more than the 64 of max_length, and is cut to that"
        ):
            processor(text=TEXTS)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            processor(text=TEXTS)

    def test_texts_that_are_not_unicode(self, processor):
        found = processor(text=["x \ud83d", "caf\udce9"]).input_ids
        np.testing.assert_array_equal(found, processor(text=["x \ufffd", "caf\ufffd"]).input_ids)

    def test_files_as_images(self, processor, tmp_path):
        picture("RGBA", 20, 30).save(tmp_path / "a.png")
        found = processor([tmp_path / "a.png", picture("RGBA", 20, 30)]).pixel_values
        np.testing.assert_array_equal(found[0], found[1])
        with pytest.raises(FileNotFoundError, match="no such image file"):
            processor(tmp_path / "b.png")


class TestLength:
    @pytest.mark.parametrize(
        ("config", "length"),
        [
            (None, 20),
            ({"text_config": {"max_position_embeddings": 16}}, 16),
            ({"text_config": {}}, 64),
            ({"text_config": {"vocab_size": 9}, "vision_config": {}}, 64),
            ({"model_type": "siglip_text_model", "max_position_embeddings": 12}, 12),
            ({"model_type": "siglip_vision_model"}, 20),
        ],
    )
    def test_comes_from_the_model(self, spiece, tmp_path, config, length):
        SiglipTokenizer(spiece, model_max_length=20).save_pretrained(tmp_path)
        SiglipImageProcessorPil(size=(16, 16)).save_pretrained(tmp_path)
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config))
        processor = SiglipProcessor.from_pretrained(tmp_path)
        assert processor.max_length == length
        assert processor(text=TEXTS).input_ids.shape == (4, length)

    def test_unknown_is_64(self, spiece):
        processor = SiglipProcessor(SiglipImageProcessorPil(), SiglipTokenizer(spiece, model_max_length=None))
        assert processor(text="a").input_ids.shape == (1, 64)

    def test_broken(self, spiece, tmp_path):
        shutil.copy(spiece, tmp_path / "spiece.model")
        SiglipImageProcessorPil().save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": "64"}}')
        with pytest.raises(ValueError, match="max_position_embeddings must be an integer from 1 to 1048576, got '64'"):
            SiglipProcessor.from_pretrained(tmp_path)


class TestFiles:
    def test_the_reference_reads_ours(self, spiece, tmp_path):
        images = SiglipImageProcessorPil(size=(20, 24), resample=2, image_mean=(0.1, 0.2, 0.3))
        ours = SiglipProcessor(images, SiglipTokenizer(spiece, additional_special_tokens=["<x>"]), max_length=16)
        ours.save_pretrained(tmp_path)
        image = PIL.Image.fromarray(noise(50, 40))
        with quiet_reference():
            reference: Any = transformers.SiglipProcessor.from_pretrained(tmp_path, backend="pil")
            expected = reference(
                text=[*TEXTS, "a <x>"], images=image, padding="max_length", truncation=True, return_tensors="np"
            )
            (tmp_path / "processor_config.json").unlink()  # version 4 does not know it
            older = transformers.SiglipImageProcessorPil.from_pretrained(tmp_path)(image, return_tensors="np")
        found = ours(image, [*TEXTS, "a <x>"], data_format="channels_first")
        np.testing.assert_array_equal(found.input_ids, expected["input_ids"])
        np.testing.assert_array_equal(found.pixel_values, expected["pixel_values"])
        np.testing.assert_array_equal(found.pixel_values, older["pixel_values"])

    @pytest.mark.parametrize("backend", ["pil", "jax", None])
    def test_we_read_the_reference(self, spiece, tmp_path, backend):
        image = PIL.Image.fromarray(noise(50, 40))
        with quiet_reference():
            images = transformers.SiglipImageProcessorPil(size={"height": 20, "width": 24}, do_normalize=False)
            reference: Any = transformers.SiglipProcessor(images, transformers.SiglipTokenizer(str(spiece)))
            reference.save_pretrained(tmp_path)
            expected = reference(text=TEXTS, images=image, padding="max_length", truncation=True, return_tensors="np")
        ours = SiglipProcessor.from_pretrained(tmp_path, backend=backend)
        assert type(ours.image_processor) is (SiglipImageProcessor if backend == "jax" else SiglipImageProcessorPil)
        found = ours(image, TEXTS, data_format="channels_first")
        np.testing.assert_array_equal(found.input_ids, expected["input_ids"])
        np.testing.assert_array_equal(found.pixel_values, expected["pixel_values"])

    def test_overrides_take_precedence_over_the_files(self, processor, tmp_path):
        processor.save_pretrained(tmp_path)
        overrides = {"size": {"height": 8, "width": 4}, "do_normalize": False, "padding_side": "left"}
        overrides |= {"model_max_length": 9, "cls_token": "<unk>"}
        with quiet_reference():
            reference: Any = transformers.SiglipProcessor.from_pretrained(tmp_path, backend="pil", **overrides)
            image = PIL.Image.fromarray(noise(20, 30))
            expected = reference(text=TEXTS, images=image, padding="max_length", truncation=True, return_tensors="np")
        ours = SiglipProcessor.from_pretrained(tmp_path, **overrides)
        found = ours(image, TEXTS, data_format="channels_first")
        np.testing.assert_array_equal(found.input_ids, expected["input_ids"])
        np.testing.assert_array_equal(found.pixel_values, expected["pixel_values"])
        assert (ours.max_length, ours.tokenizer.cls_token) == (9, "<unk>")
        with pytest.raises(ValueError, match="unknown argument 'do_normalise'; did you mean 'do_normalize'"):
            SiglipProcessor.from_pretrained(tmp_path, do_normalise=False)

    def test_round_trip(self, processor, tmp_path):
        processor.save_pretrained(tmp_path / "new" / "directory")
        again = SiglipProcessor.from_pretrained(tmp_path / "new" / "directory")
        first, second = (p(noise(20, 30), TEXTS) for p in (processor, again))
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])

    def test_what_is_missing(self, spiece, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file or directory"):
            SiglipProcessor.from_pretrained(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match=r"no spiece\.model"):
            SiglipProcessor.from_pretrained(tmp_path)
        shutil.copy(spiece, tmp_path / "spiece.model")
        with pytest.raises(FileNotFoundError, match=r"no preprocessor_config\.json"):
            SiglipProcessor.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match="name_or_path must be the directory of a processor, got a file"):
            SiglipProcessor.from_pretrained(tmp_path / "spiece.model")
        with pytest.raises(ValueError, match="backend must be one of None, 'pil', 'jax'"):
            SiglipProcessor.from_pretrained(tmp_path, backend="torchvision")


def test_a_batch_goes_through_jit_as_a_dictionary_does():
    batch = Batch(b=np.ones(2, np.float32), a=np.zeros(3, np.int32))
    doubled = jax.jit(lambda batch: jax.tree.map(lambda x: 2 * x, batch))(batch)
    assert type(doubled) is Batch and doubled.b.tolist() == [2, 2] and doubled.a.dtype == np.int32
    assert [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(batch)] == ["['a']", "['b']"]


@pytest.mark.parametrize("value", [True, False])
def test_an_option_given_twice_is_an_error_as_in_the_reference(processor, value):
    message = "^do_rescale must be given once, got it as an argument and in images_kwargs; leave one out$"
    with pytest.raises(ValueError, match=message):
        processor(images=noise(20, 30), do_rescale=True, images_kwargs={"do_rescale": value})
    with pytest.raises(ValueError, match="^padding must be given once, got it as an argument and in text_kwargs"):
        processor(text="a cat", padding=False, text_kwargs={"padding": "max_length"})
    found = processor(images=noise(20, 30), do_normalize=False, images_kwargs={"do_rescale": value}).pixel_values
    assert bool(found.max() <= 1.0) == value
