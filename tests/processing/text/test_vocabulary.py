"""Special and added tokens of both tokenizers against the reference: assignment, addition, decoding."""

import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from siglip_jax import Siglip2Tokenizer, SiglipTokenizer
from siglip_jax.processing.text.settings import NAMED
from tests.support import gemma_tokenizer as gemma
from tests.support.spiece import quiet_reference

Pair = tuple[Any, Any]
BITS = [
    "cat",
    " cat",
    "dog ",
    " dog",
    "▁",
    " ",
    "<x>",
    " <x>",
    "</s>",
    "<eos>",
    "a",
    "photo",
    "!",
    "\t",
    "  ",
    "CAT",
    "Dog",
]


@pytest.fixture(scope="module")
def gemma_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gemma.train(tmp_path_factory.mktemp("gemma") / "tokenizer.json")


def first(spiece: Path, **options: Any) -> Pair:
    with quiet_reference():
        return SiglipTokenizer(spiece, **options), transformers.SiglipTokenizer(str(spiece), **options)


def second(file: Path, **options: Any) -> Pair:
    options |= {"padding_side": "right"}
    return Siglip2Tokenizer(file, **options), transformers.Siglip2Tokenizer(tokenizer_file=str(file), **options)


def agree(pair: Pair, seed: int = 0) -> None:
    """Asserts the same ids and the same decoded texts for mixtures of words, blanks and tokens."""
    ours, reference = pair
    draw = random.Random(seed)
    for _ in range(100):
        text = "".join(draw.choices(BITS, k=draw.randint(0, 6)))
        with quiet_reference():
            expected = reference(text)["input_ids"]
            decoded = reference.decode(expected, skip_special_tokens=True)
        assert ours(text)["input_ids"] == expected, text
        assert ours.decode(expected, skip_special_tokens=True) == decoded, text
    assert len(ours) == len(reference)
    assert ours.all_special_tokens == reference.all_special_tokens
    assert ours.all_special_ids == reference.all_special_ids


class TestAssignment:
    def test_a_pad_token_is_what_texts_are_padded_with(self, spiece):
        pair = ours, reference = first(spiece)
        for tokenizer in pair:
            tokenizer.pad_token = "<unk>"
        options = {"padding": "max_length", "max_length": 6}
        assert (ours.pad_token, ours.pad_token_id) == ("<unk>", 2)
        assert dict(ours("a cat", **options)) == dict(reference("a cat", **options))
        assert ours("a cat", **options)["input_ids"][-3:] == [2, 2, 2]
        agree(pair)

    def test_an_eos_token_is_what_texts_end_with(self, spiece):
        pair = ours, reference = first(spiece)
        for tokenizer in pair:
            tokenizer.eos_token = "<pad>"
        assert ours("a cat")["input_ids"][-1] == reference("a cat")["input_ids"][-1] == 0
        agree(pair)

    @pytest.mark.parametrize("name", ["unk_token", "cls_token", "mask_token"])
    @pytest.mark.parametrize("token", ["▁cat", "dog", "nosuch"])
    def test_any_named_token(self, spiece, name, token):
        pair = ours, reference = first(spiece)
        for tokenizer in pair:
            setattr(tokenizer, name, token)
        assert ours.special_tokens_map == reference.special_tokens_map
        agree(pair)

    @pytest.mark.parametrize("name", NAMED)
    def test_ids_and_none_as_in_the_reference(self, spiece, name):
        ours, reference = first(spiece)
        assert getattr(ours, name) == getattr(reference, name)
        assert getattr(ours, f"{name}_id") == getattr(reference, f"{name}_id")
        for tokenizer in (ours, reference):
            setattr(tokenizer, f"{name}_id", 5)
        assert (getattr(ours, name), getattr(ours, f"{name}_id")) == (getattr(reference, name), 5)
        for tokenizer in (ours, reference):
            setattr(tokenizer, name, None)
        assert getattr(ours, name) is getattr(reference, name) is None
        assert getattr(ours, f"{name}_id") is getattr(reference, f"{name}_id") is None
        assert ours.all_special_tokens == reference.all_special_tokens

    def test_unset_tokens_are_none(self, spiece):
        ours = SiglipTokenizer(spiece)
        assert ours.bos_token is ours.bos_token_id is ours.sep_token is ours.cls_token is ours.mask_token is None

    def test_tokens_without_a_name(self, spiece):
        pair = ours, reference = first(spiece)
        for tokenizer in pair:
            tokenizer.extra_special_tokens = ["▁cat", "dog"]
        assert ours.extra_special_tokens == ours.additional_special_tokens == ["▁cat", "dog"]
        assert ours.extra_special_tokens_ids == reference.extra_special_tokens_ids
        agree(pair)
        ours.additional_special_tokens_ids = [5, 6]
        assert ours.additional_special_tokens == ours.convert_ids_to_tokens([5, 6])

    @pytest.mark.parametrize(
        ("name", "needs", "call"),
        [
            ("eos_token", "eos_token must be a token to end a text", {}),
            ("unk_token", "unk_token must be a token to encode texts", {}),
            ("pad_token", "pad_token must be a token to pad texts", {"padding": True}),
        ],
    )
    def test_a_token_that_a_call_needs_is_named(self, spiece, name, needs, call):
        ours = SiglipTokenizer(spiece)
        setattr(ours, name, None)
        with pytest.raises(ValueError, match=f"^{needs}, got None; set tokenizer.{name}$"):
            ours(["a cat"], **call)

    @pytest.mark.parametrize("value", [3, "", ["<unk>"], {"x": 1}])
    def test_no_token(self, spiece, value):
        with pytest.raises(ValueError, match="^pad_token must be a string, or an object with a 'content', got"):
            SiglipTokenizer(spiece).pad_token = value

    def test_settings_are_written_as_they_were_assigned(self, spiece, tmp_path):
        ours = SiglipTokenizer(spiece)
        ours.pad_token, ours.padding_side, ours.model_max_length, ours.split_special_tokens = "<unk>", "left", 9, True
        ours.model_input_names = ["input_ids"]
        ours.save_pretrained(tmp_path)
        with quiet_reference():
            reference = transformers.SiglipTokenizer.from_pretrained(tmp_path)
            expected = dict(reference(["a</s> cat", "a"], padding="max_length"))
        again = SiglipTokenizer.from_pretrained(tmp_path)
        assert dict(ours(["a</s> cat", "a"], padding="max_length")) == expected
        assert dict(again(["a</s> cat", "a"], padding="max_length")) == expected

    @pytest.mark.parametrize("value", [0, -3, float("nan"), "64", True])
    def test_a_length_that_is_none(self, spiece, value):
        with pytest.raises(ValueError, match="model_max_length must be a number of tokens, at least 1, or None, got"):
            SiglipTokenizer(spiece).model_max_length = value

    def test_what_cannot_change_says_so(self, spiece, gemma_file):
        with pytest.raises(ValueError, match="do_lower_case must be True, as SigLIP 2 was trained, got False"):
            Siglip2Tokenizer(gemma_file).do_lower_case = False
        for name in ("added_tokens_decoder", "all_special_tokens", "vocab_size"):
            with pytest.raises(AttributeError):
                setattr(SiglipTokenizer(spiece), name, {})

    def test_siglip_2(self, gemma_file, tmp_path):
        ours = Siglip2Tokenizer(gemma_file)
        ours.eos_token, ours.pad_token_id = "<h1>", 4
        ids = ours(["a cat", "a"], padding=True)["input_ids"]
        assert ids[0][-1] == ours.convert_tokens_to_ids("<h1>")
        assert ids[1][-1] == 4
        ours.save_pretrained(tmp_path)
        saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert saved(["a cat", "a"], padding=True)["input_ids"] == ids


class TestAddition:
    CASES = [
        [" cat"],
        [" <x>"],
        ["dog ", "<x>"],
        [" dog", " cat"],
        ["  "],
        [" cat", "cat"],
        ["▁cat"],
        ["a cat"],
        ["CAT"],
    ]

    @pytest.mark.parametrize("tokens", CASES)
    def test_tokens_that_begin_or_end_with_a_blank(self, spiece, tokens):
        agree(first(spiece, additional_special_tokens=tokens))

    @pytest.mark.parametrize("tokens", CASES)
    @pytest.mark.parametrize("special", [False, True])
    def test_add_tokens(self, spiece, tokens, special):
        pair = first(spiece)
        with quiet_reference():
            ours, expected = (tokenizer.add_tokens(list(tokens), special_tokens=special) for tokenizer in pair)
        assert ours == expected
        agree(pair)
        assert pair[0].get_added_vocab() == pair[1].get_added_vocab()

    def test_extra_special_tokens_of_the_constructor(self, spiece, gemma_file):
        for tokens in (["<x>", " cat"], {"image_token": "<x>", "other_token": " cat"}):
            for make, file in ((first, spiece), (second, gemma_file)):
                ours, reference = make(file, extra_special_tokens=tokens)
                with quiet_reference():
                    assert ours("a <x> cat")["input_ids"] == reference("a <x> cat")["input_ids"]
                assert ours.extra_special_tokens == ["<x>", " cat"]

    def test_nothing_to_add(self, spiece):
        for tokenizer in first(spiece):
            assert [tokenizer.add_tokens(nothing) for nothing in (None, "", [], [""])] == [0] * 4

    def test_with_properties(self, spiece):
        pair = first(spiece)
        token = tokenizers.AddedToken("dog", single_word=True, lstrip=True, normalized=False)
        assert [tokenizer.add_tokens(token) for tokenizer in pair] == [1, 1]
        agree(pair)

    @pytest.mark.parametrize("replace", [True, False])
    def test_add_special_tokens(self, spiece, replace):
        pair = first(spiece, additional_special_tokens=["<x>"])
        new = {"cls_token": "<cls>", "pad_token": "▁cat", "extra_special_tokens": [" dog", "<x>"]}
        assert [tokenizer.add_special_tokens(new, replace) for tokenizer in pair] == [2, 2]
        agree(pair)
        assert pair[0].special_tokens_map == pair[1].special_tokens_map
        assert pair[0].add_special_tokens({}) == 0

    @pytest.mark.parametrize(
        ("new", "message"),
        [
            ({"pad": "<x>"}, "name of a special token must be one of"),
            ({"pad_token": None}, "pad_token must be a string"),
            ({"extra_special_tokens": "<x>"}, "extra_special_tokens must be a list of tokens, got '<x>'"),
        ],
    )
    def test_mistakes(self, spiece, new, message):
        tokenizer = SiglipTokenizer(spiece)
        with pytest.raises(ValueError, match=message):
            tokenizer.add_special_tokens(new)
        assert tokenizer.pad_token == "</s>"

    @pytest.mark.parametrize("name", ["unk_token", "pad_token", "cls_token"])
    def test_siglip_2_takes_a_token_outside_its_vocabulary(self, gemma_file, name):
        pair = second(gemma_file, **{name: "<x>"})
        assert getattr(pair[0], f"{name}_id") == getattr(pair[1], f"{name}_id") == len(pair[0]) - 1
        agree(pair)

    @pytest.mark.parametrize("tokens", [["<x>"], [" cat"], ["CAT"], ["a cat"]])
    def test_siglip_2(self, gemma_file, tokens):
        for special in (False, True):
            pair = second(gemma_file)
            for tokenizer in pair:
                tokenizer.add_tokens(list(tokens), special_tokens=special)
            agree(pair)
        agree(second(gemma_file, additional_special_tokens=list(tokens)))

    def test_what_was_added_is_saved_and_pickled(self, spiece, gemma_file, tmp_path):
        for number, tokenizer in enumerate((SiglipTokenizer(spiece), Siglip2Tokenizer(gemma_file))):
            tokenizer.add_tokens(["<x>", " cat"])
            tokenizer.save_pretrained(tmp_path / str(number))
            again = [type(tokenizer).from_pretrained(tmp_path / str(number)), pickle.loads(pickle.dumps(tokenizer))]
            for text in ("a <x> cat", " cat", "dog"):
                assert [other(text)["input_ids"] for other in again] == [tokenizer(text)["input_ids"]] * 2


def test_spaces_between_special_tokens_change_nothing_as_in_the_reference(spiece):
    ours, reference = first(spiece)
    for spaced in (False, True):
        expected = reference.decode([5, 1, 1, 6], spaces_between_special_tokens=spaced)
        assert ours.decode([5, 1, 1, 6], spaces_between_special_tokens=spaced) == expected
        assert ours.batch_decode([[5, 1, 1, 6]], spaces_between_special_tokens=spaced) == [expected]


def test_number_of_special_tokens(spiece):
    ours, reference = first(spiece)
    for pair in (False, True):
        assert ours.num_special_tokens_to_add(pair) == reference.num_special_tokens_to_add(pair)


class TestRows:
    def test_every_id_has_a_row(self, spiece, gemma_file):
        for tokenizer in (SiglipTokenizer(spiece), Siglip2Tokenizer(gemma_file)):
            assert tokenizer.largest_id == len(tokenizer) - 1 == max(tokenizer.get_vocab().values())
            for rows in (len(tokenizer), len(tokenizer) + 3):
                tokenizer.check_rows(rows)
            with pytest.raises(
                ValueError, match=rf"ids must be below the {len(tokenizer) - 1} rows of the model's table"
            ):
                tokenizer.check_rows(len(tokenizer) - 1)
            tokenizer.add_tokens(["<new>"])
            with pytest.raises(
                ValueError, match=rf"got {len(tokenizer) - 1} of '<new>'; use the tokenizer of this model"
            ):
                tokenizer.check_rows(len(tokenizer) - 1)

    def test_a_vocabulary_much_smaller_than_the_table(self, spiece):
        message = (
            r"spiece.model: vocabulary must have about as many pieces as the model's table has rows, 2048, got \d+;"
        )
        with pytest.raises(ValueError, match=message):
            SiglipTokenizer(spiece).check_rows(2048)
