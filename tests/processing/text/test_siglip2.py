"""SigLIP 2's tokenizer against the reference's lower-casing class, and its place in the processor."""

import json
import random
import shutil
import sys

import numpy as np
import PIL.Image
import pytest
import transformers

from siglip_jax import Siglip2Tokenizer, SiglipProcessor, SiglipTokenizer
from siglip_jax.processing import SiglipImageProcessorPil
from tests.support import gemma_tokenizer as gemma

TEXT = "A Photo of 2 CATS."
BITS = [
    *(
        "a photo of",
        " two",
        "Cats",
        "DOGS",
        " ",
        "  ",
        "\n",
        "\t",
        "!?",
        "...",
        "don't",
        "_under_",
        "日本語",
        "🐱",
        "é",
    ),
    *("e\u0301", "İstanbul", "straße", "ＡＢＣ", "\u3000", "\x00", "\u200b", "▁", "<eos>", "<EOS>", "<pad>", "<bos>"),
    *("<unk>", "<mask>", "<h1>", "<start_of_turn>", "<0x41>", "ΣΑΣ", "ǅ", "\u0307", "x" * 40),
]


def strings(count):
    """Seeded strings of pieces that have made tokenizers differ."""
    draw = random.Random(0)
    return [draw.choice(["", "", " "]).join(draw.choices(BITS, k=draw.randint(0, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("gemma")
    gemma.train(path / "tokenizer.json")
    gemma.write_settings(path)
    gemma.write_config(path)
    return path


@pytest.fixture(scope="module")
def reference(directory):
    return transformers.Siglip2Tokenizer(tokenizer_file=str(directory / "tokenizer.json"), padding_side="right")


@pytest.fixture(scope="module")
def ours(directory):
    return Siglip2Tokenizer.from_pretrained(directory)


def test_ids_and_text_equal_the_reference(ours, reference):
    texts = strings(4000)
    found, expected = ours(texts, verbose=False)["input_ids"], reference(texts)["input_ids"]
    differing = [(t, a, b) for t, a, b in zip(texts, found, expected, strict=True) if list(a) != [*b][: len(b)]]
    assert not differing, (len(differing), differing[0])
    for row in expected[:500]:
        assert ours.decode(row) == reference.decode(row)
        assert ours.decode(row, skip_special_tokens=True) == reference.decode(row, skip_special_tokens=True)


def test_padding_and_truncation_equal_the_reference(ours, reference):
    texts = [*strings(300), "a photo of two cats " * 30]
    options = {"padding": "max_length", "truncation": True, "max_length": 64, "return_tensors": "np"}
    found, expected = ours(texts, **options), reference(texts, **options)
    np.testing.assert_array_equal(found["input_ids"], expected["input_ids"])
    assert found["input_ids"].dtype == np.int32 and found["input_ids"].shape == (301, 64)
    assert found["input_ids"][-1, -1] == 1  # the end stays at the end of a text that is cut


def test_capitals_do_not_count_where_the_reference_keeps_them(directory, ours):
    kept = transformers.AutoTokenizer.from_pretrained(directory)
    assert type(kept).__name__.startswith("Gemma")
    assert kept(TEXT)["input_ids"] != kept(TEXT.lower())["input_ids"]
    assert ours(TEXT)["input_ids"] == ours(TEXT.lower())["input_ids"] == kept(TEXT.lower())["input_ids"]


def test_what_is_saved_lower_cases_in_the_reference_too(ours, tmp_path):
    ours.save_pretrained(tmp_path)
    theirs, again = transformers.AutoTokenizer.from_pretrained(tmp_path), Siglip2Tokenizer.from_pretrained(tmp_path)
    for text in strings(300):
        found = ours(text, verbose=False)["input_ids"]
        assert found == theirs(text)["input_ids"] == again(text, verbose=False)["input_ids"]


def test_the_files_decide_which_tokenizer_it_is(directory, spiece, tmp_path):
    assert isinstance(SiglipTokenizer.from_pretrained(directory), Siglip2Tokenizer)
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(directory / name, tmp_path / name)
    gemma.write_config(tmp_path, "siglip2")
    assert isinstance(SiglipTokenizer.from_pretrained(tmp_path), Siglip2Tokenizer)
    shutil.copy(spiece, tmp_path / "spiece.model")
    assert isinstance(SiglipTokenizer.from_pretrained(tmp_path), SiglipTokenizer)


def test_the_processor_pads_to_the_length_of_the_model_and_resizes_bilinearly(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "model")
    settings = {"image_processor_type": "SiglipImageProcessor", "resample": 2, "size": {"height": 32, "width": 32}}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    processor = SiglipProcessor.from_pretrained(tmp_path / "model", backend="pil")
    image = PIL.Image.fromarray(np.random.RandomState(0).randint(0, 256, (50, 71, 3)).astype(np.uint8))
    batch = processor(text=[TEXT, "a dog"], images=image)
    assert batch["input_ids"].shape == (2, 64) and "attention_mask" not in batch
    assert (batch["input_ids"][1][-8:] == 0).all()
    resized = np.asarray(image.resize((32, 32), PIL.Image.BILINEAR), np.float64) * (1 / 255)
    expected = (resized.astype(np.float32) - np.float32(0.5)) / np.float32(0.5)
    np.testing.assert_array_equal(batch["pixel_values"][0], expected)
    assert isinstance(processor.image_processor, SiglipImageProcessorPil)
    processor.save_pretrained(tmp_path / "saved")
    again = SiglipProcessor.from_pretrained(tmp_path / "saved", backend="pil")
    np.testing.assert_array_equal(again(text=[TEXT, "a dog"])["input_ids"], batch["input_ids"])


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"model": {"type": "BPE"}}', "[" * 10_000])
def test_broken_files_are_told_in_one_line(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"^[^\n]*tokenizer\.json[^\n]*$"):
        SiglipTokenizer.from_pretrained(tmp_path)


def test_without_the_library_one_line_says_what_to_install(directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"^[^\n]*pip install 'tokenizers>=\d[\d.]*' \(the extra 'siglip2'\)$"):
        SiglipTokenizer.from_pretrained(directory)


def test_lower_case_cannot_be_switched_off(directory):
    with pytest.raises(ValueError, match="do_lower_case must be True, as SigLIP 2 was trained, got False"):
        Siglip2Tokenizer(directory / "tokenizer.json", do_lower_case=False)
