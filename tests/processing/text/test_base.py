"""What both tokenizers share: padding of ids, warnings of long texts, texts that are not UTF-8."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from siglip_jax import Siglip2Tokenizer, SiglipTokenizer
from tests.support import gemma_tokenizer as gemma
from tests.support.spiece import quiet_reference

LONG = "a photo of two dogs " * 30


@pytest.fixture(scope="module")
def pair(spiece):
    with quiet_reference():
        return SiglipTokenizer(spiece), transformers.SiglipTokenizer(str(spiece))


class TestPad:
    OPTIONS = (
        {},
        {"padding": "max_length", "max_length": 9},
        {"padding": "max_length", "max_length": 3, "pad_to_multiple_of": 4},
        {"padding": "longest", "pad_to_multiple_of": 8, "padding_side": "left"},
        {"padding": False},
        {"return_attention_mask": False},
        {"return_attention_mask": True},
    )

    @pytest.mark.parametrize("options", OPTIONS)
    @pytest.mark.parametrize("listed", [False, True])
    def test_lists(self, pair, options, listed):
        texts = ["a cat", "a photo of two dogs", ""]
        found = []
        for tokenizer in pair:
            with quiet_reference():
                rows = [dict(tokenizer(t, return_special_tokens_mask=True, return_attention_mask=False)) for t in texts]
                whole = {name: [row[name] for row in rows] for name in rows[0]}
                found.append(dict(tokenizer.pad(rows if listed else whole, **options)))
        assert found[0] == found[1]

    def test_one_text_and_other_entries(self, pair):
        for given in ({"input_ids": [5, 1], "label": 3}, {"input_ids": [5, 1]}):
            options = {"padding": "max_length", "max_length": 4}
            expected = dict(pair[1].pad(dict(given), **options))
            assert dict(pair[0].pad(given, **options)) == expected
        rows = [{"input_ids": [5, 1], "label": 3}, {"input_ids": [5, 6, 1], "label": 4}]
        expected = pair[1].pad([dict(row) for row in rows], return_tensors="np")
        found = pair[0].pad(rows, return_tensors="np")
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])
        assert rows == [{"input_ids": [5, 1], "label": 3}, {"input_ids": [5, 6, 1], "label": 4}]

    def test_the_kind_of_arrays_is_kept(self, pair):
        rows = [np.array([5, 1]), np.array([5, 6, 1])]
        found = pair[0].pad({"input_ids": rows})
        assert isinstance(found["input_ids"], np.ndarray) and found["input_ids"].dtype == np.int32
        np.testing.assert_array_equal(found["input_ids"], pair[1].pad({"input_ids": rows})["input_ids"])
        jaxed = pair[0].pad({"input_ids": jnp.array([[5, 1]])}, "max_length", 3)
        assert isinstance(jaxed["input_ids"], jax.Array) and jaxed["input_ids"].tolist() == [[5, 1, 1]]

    @pytest.mark.parametrize(
        ("given", "options", "message"),
        [
            ({"ids": [1]}, {}, "encoded_inputs must have input_ids, got"),
            ([1, 2], {}, "encoded_inputs must be a mapping or a list of mappings"),
            ({"input_ids": [[1], [1, 2]]}, {"padding": False, "return_tensors": "np"}, "pass padding=True"),
            ({"input_ids": [1]}, {"padding_side": "top"}, "padding_side must be one of"),
        ],
    )
    def test_mistakes(self, pair, given, options, message):
        with pytest.raises(ValueError, match=message):
            pair[0].pad(given, **options)


class TestMultiples:
    def test_a_maximum_that_is_no_multiple_is_refused_as_in_the_reference(self, pair):
        options = {"padding": True, "truncation": True, "max_length": 10, "pad_to_multiple_of": 8}
        for tokenizer in pair:
            with pytest.raises(ValueError, match="multiple of"):
                tokenizer(["a cat"], **options)

    @pytest.mark.parametrize(("padding", "truncation"), [*itertools.product(["longest", "max_length"], [False, True])])
    @pytest.mark.parametrize("max_length", [None, 4, 10, 16])
    def test_lengths_are_those_of_the_reference(self, pair, padding, truncation, max_length):
        options = {"padding": padding, "truncation": truncation, "max_length": max_length, "pad_to_multiple_of": 4}
        found = []
        for tokenizer in pair:
            try:
                with quiet_reference():
                    found.append(tokenizer(["a cat", "a photo of two dogs"], **options)["input_ids"])
            except ValueError:
                found.append(None)
        assert found[0] == found[1]


def test_members_of_the_reference_s_enumerations(pair):
    options = {"padding": transformers.utils.PaddingStrategy.MAX_LENGTH, "max_length": 9}
    options["truncation"] = transformers.tokenization_utils_base.TruncationStrategy.ONLY_FIRST
    assert dict(pair[0](["a cat", LONG], **options)) == dict(pair[1](["a cat", LONG], **options))


def test_repr_names_the_file_and_the_special_tokens(pair):
    found = repr(pair[0])
    assert found.startswith(f"SiglipTokenizer(vocab_file={pair[0].vocab_file!r}, vocab_size=")
    assert found.endswith("special_tokens={'eos_token': '</s>', 'unk_token': '<unk>', 'pad_token': '</s>'})")


class TestLongTexts:
    def test_a_warning_once_where_a_text_is_too_long_and_not_cut(self, spiece):
        tokenizer = SiglipTokenizer(spiece)
        message = "^text has 151 tokens, more than the 64 that the model accepts, and is not cut; pass truncation=True$"
        with pytest.warns(UserWarning, match=message):
            tokenizer(LONG)
        tokenizer(LONG)
        for options in ({"truncation": True}, {"max_length": 300}, {"padding": "max_length"}, {"verbose": False}):
            SiglipTokenizer(spiece)(LONG, **options)

    def test_a_warning_of_a_cut_where_asked_for(self, spiece):
        message = "^text has 151 tokens, more than the 16 of max_length, and is cut to that; pass truncation=True"
        with pytest.warns(UserWarning, match=message):
            SiglipTokenizer(spiece)(["a", LONG], truncation=True, max_length=16, verbose=True)
        SiglipTokenizer(spiece)(["a", LONG], truncation=False, max_length=16, verbose=True)
        SiglipTokenizer(spiece)(["a", "a cat"], truncation=True, max_length=16, verbose=True)


class TestTextsThatAreNotUnicode:
    TEXTS = ("x \ud83d", "caf\udce9 cat", "\udcff</s>", "\ud83d\udc31 cat", "\udc31\ud83d")
    EXPECTED = ("x \ufffd", "caf\ufffd cat", "\ufffd</s>", "\U0001f431 cat", "\ufffd\ufffd")

    def test_siglip(self, spiece):
        tokenizer = SiglipTokenizer(spiece)
        expected = tokenizer(list(self.EXPECTED))["input_ids"]
        assert tokenizer(list(self.TEXTS))["input_ids"] == expected
        assert [tokenizer(text)["input_ids"] for text in self.TEXTS] == expected
        assert [*map(tokenizer.tokenize, self.TEXTS)] == [*map(tokenizer.tokenize, self.EXPECTED)]

    def test_siglip_2(self, tmp_path):
        tokenizer = Siglip2Tokenizer(gemma.train(tmp_path / "tokenizer.json"))
        assert tokenizer(list(self.TEXTS))["input_ids"] == tokenizer(list(self.EXPECTED))["input_ids"]
        assert [*map(tokenizer.tokenize, self.TEXTS)] == [*map(tokenizer.tokenize, self.EXPECTED)]
