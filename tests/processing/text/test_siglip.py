"""The tokenizer against the reference: ids, special tokens, padding, truncation, pairs, decoding, errors."""

import json
import pickle
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers

from siglip_jax.processing import SiglipTokenizer
from tests.support.spiece import WORDS, captions, quiet_reference, train

_ODD = """</s> <unk> <pad> <s> </S> <extra_id_0> <extra_id_00> < > / İ ΣΑΣ Σ ΑΣ ß ẞ ЖУК ж Ж 日本語 ＣＡＴＳ． ＜/s＞ …
“q” — 🐱 é ﬁ Ǆ ½ 𝔸 don't a_b ... {} [UNK] !?., 25%"""
ODD = [
    *_ODD.split(),
    "▁",
    " ",
    "  ",
    "\t",
    "\n",
    "\0",
    "\x1c",
    "\x85",
    "\u00a0",
    "\u200b",
    "\u3000",
    "\ufeff",
    "e\u0301",
    "\u0301",
]
EXTRA = ["<extra_id_0>", "ж", "<extra_id_00>"]


def fuzz(count: int, seed: int) -> list[str]:
    """Returns captions, mixtures of words and traps, and random characters."""
    rng = random.Random(seed)
    planes = [(0, 0x7F), (0, 0x2FFF), (0x3000, 0xD7FF), (0xE000, 0x1FFFF)]

    def one() -> str:
        kind = rng.random()
        if kind < 0.3:
            return " ".join(rng.choices(WORDS, k=rng.randint(0, 12))).title()
        if kind < 0.8:
            parts = [rng.choice(WORDS if rng.random() < 0.5 else ODD) for _ in range(rng.randint(0, 10))]
            return rng.choice(["", "", " "]).join(parts)
        return "".join(chr(rng.randint(*rng.choice(planes))) for _ in range(rng.randint(0, 12)))

    return [one() for _ in range(count)]


def both(path: Path, **options: object) -> tuple[SiglipTokenizer, transformers.PreTrainedTokenizerBase]:
    with quiet_reference():
        return SiglipTokenizer(path, **options), transformers.SiglipTokenizer(str(path), **options)


@pytest.fixture(scope="module")
def pair(spiece: Path) -> tuple[SiglipTokenizer, transformers.PreTrainedTokenizerBase]:
    return both(spiece)


class TestIds:
    @pytest.mark.slow
    def test_twenty_thousand_strings(self, pair):
        ours, reference = pair
        texts = fuzz(20_000, seed=1)
        with quiet_reference():
            expected = reference(texts)["input_ids"]
        found = ours(texts)["input_ids"]
        assert [t for t, a, b in zip(texts, found, expected, strict=True) if a != b] == []
        assert sum("</s>" in t for t in texts) > 300  # the traps are in there

    @pytest.mark.slow
    @pytest.mark.parametrize("options", [{"additional_special_tokens": EXTRA}, {"do_lower_case": False}])
    def test_options(self, spiece, options):
        ours, reference = both(spiece, **options)
        texts = fuzz(3000, seed=2)
        with quiet_reference():
            assert ours(texts)["input_ids"] == reference(texts)["input_ids"]

    @pytest.mark.slow
    def test_another_layout_and_normaliser(self, spiece_other):
        ours, reference = both(spiece_other)
        assert (ours.eos_token_id, ours.pad_token_id, ours.unk_token_id) == (2, 2, 0)
        texts = fuzz(3000, seed=3)
        with quiet_reference():
            assert ours(texts)["input_ids"] == reference(texts)["input_ids"]

    def test_special_tokens_that_the_vocabulary_lacks(self, tmp_path):
        path = train(tmp_path / "spiece.model", unk_piece="<?>")
        ours, reference = both(path)
        texts = fuzz(1000, seed=4)
        with quiet_reference():
            assert ours(texts)["input_ids"] == reference(texts)["input_ids"]
        assert ours.unk_token_id == reference.unk_token_id == ours.vocab_size

    def test_layout_of_siglip(self, pair):
        assert (pair[0].eos_token_id, pair[0].pad_token_id, pair[0].unk_token_id) == (1, 1, 2)

    @pytest.mark.parametrize(
        "text",
        ["", " ", "   ", "▁", " ▁", "...", "!?.,", "A Photo of 2 CATS.", "  a   photo\nof\t2  cats  ", "ZÜRICH"]
        + ["İstanbul", "don't", "hello,world", "hello , world", "_under_score_", "cats…", "ＣＡＴＳ．", "a—b – c"]
        + ["“quoted”", "日本語", "🐱 cats", "a\u00a0photo", "a\u200bphoto", "a\u3000photo", "cats\x1cdogs", "\x85"]
        + ["hi</s>", "</s>", "</s>>", "hi </s> there", "</s> cat", "hi <unk> there", "<pad>", "<s> hi", "</S> cat"]
        + ["</s></s>", "a</s>", "a </s> </s> b"],
    )
    @pytest.mark.parametrize("split_special_tokens", [False, True])
    def test_edge_cases(self, pair, text, split_special_tokens):
        ours, reference = pair
        options = {"split_special_tokens": split_special_tokens}
        with quiet_reference():
            expected, pieces = reference(text, **options)["input_ids"], reference.tokenize(text, **options)
        assert ours(text, **options)["input_ids"] == expected
        assert ours.tokenize(text, **options) == pieces

    def test_without_special_tokens(self, pair):
        ours, reference = pair
        with quiet_reference():
            assert (
                ours("a cat</s>", add_special_tokens=False)["input_ids"]
                == (reference("a cat</s>", add_special_tokens=False)["input_ids"])
            )

    @pytest.mark.parametrize("property", ["single_word", "lstrip", "rstrip"])
    def test_properties_of_added_tokens(self, spiece, tmp_path, property):
        shutil.copy(spiece, tmp_path / "spiece.model")
        token = {"content": "cat", "lstrip": False, "rstrip": False, "single_word": False}
        token |= {"normalized": False, "special": True, property: True}
        decoder = {"900": token, "901": token | {"content": " </s>", "single_word": False}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
        with quiet_reference():
            reference = transformers.SiglipTokenizer.from_pretrained(tmp_path)
        ours = SiglipTokenizer.from_pretrained(tmp_path)
        for text in ["a cat sat", "a cats sat", "acat sat", "cat", " cat ", "cat cat cat", "catcat", "cat  </s> a"]:
            with quiet_reference():
                assert ours(text)["input_ids"] == reference(text)["input_ids"], text

    def test_properties_given_to_the_constructor_do_not_count(self, spiece):
        token = {"content": "cat", "single_word": True, "special": True, "normalized": False}
        with quiet_reference():
            extra = [transformers.AddedToken(**token)]
            reference = transformers.SiglipTokenizer(str(spiece), additional_special_tokens=extra)
            expected = reference("a cats sat")["input_ids"]
        assert SiglipTokenizer(spiece, additional_special_tokens=[token])("a cats sat")["input_ids"] == expected


class TestLengths:
    TEXTS = ["a cat", "", "a photo of 2 cats " * 40, "a photo</s> of 2 cats", "dogs</s>"]

    @pytest.mark.parametrize("padding", [False, True, "longest", "max_length", "do_not_pad"])
    @pytest.mark.parametrize("truncation", [None, False, True, "longest_first", "only_first", "only_second"])
    @pytest.mark.parametrize("max_length", [None, 1, 4, 64, 300])
    def test_padding_and_truncation(self, pair, padding, truncation, max_length):
        ours, reference = pair
        options = {"padding": padding, "truncation": truncation, "max_length": max_length}
        with quiet_reference():
            expected = reference(self.TEXTS, **options)
        assert dict(ours(self.TEXTS, verbose=False, **options)) == dict(expected)

    @pytest.mark.parametrize("truncation", ["longest_first", "only_first", "only_second"])
    @pytest.mark.parametrize("max_length", [2, 3, 5, 6, 9, 12])
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_pairs(self, spiece, truncation, max_length, side):
        ours, reference = both(spiece, truncation_side=side)
        options = {"truncation": truncation, "max_length": max_length, "padding": "max_length"}
        firsts = ["a photo", "a photo of two dogs on the beach", "", "cat", "a cat</s>"]
        seconds = ["dog", "the lazy dog", "a red car and a house", "", "dog</s>"]
        with quiet_reference():
            expected = reference(firsts, seconds, **options)["input_ids"]
            listed = reference(list(zip(firsts, seconds, strict=True)), **options)["input_ids"]
        assert ours(firsts, seconds, **options)["input_ids"] == expected
        assert ours(list(zip(firsts, seconds, strict=True)), **options)["input_ids"] == listed

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_columns_and_sides(self, spiece, side):
        ours, reference = both(spiece, padding_side=side, model_input_names=["input_ids"])
        texts = ["a cat", "a photo of two dogs"]
        options = {"padding": True, "pad_to_multiple_of": 8, "return_attention_mask": True}
        options |= {"return_special_tokens_mask": True, "return_token_type_ids": True}
        with quiet_reference():
            expected = dict(reference(texts, **options))
        assert dict(ours(texts, **options)) == expected
        assert list(ours(texts)) == ["input_ids"]

    def test_mask_of_a_text_that_ends_itself_is_as_long_as_its_ids(self, pair):
        out = pair[0]("a cat</s>", return_special_tokens_mask=True)
        assert out.special_tokens_mask == [0] * (len(out.input_ids) - 1) + [1]

    @pytest.mark.parametrize("kind", ["np", "jax"])
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_arrays(self, spiece, kind, side):
        ours, reference = both(spiece, padding_side=side)
        options = {"padding": "max_length", "truncation": True, "max_length": 9}
        with quiet_reference():
            expected = reference(self.TEXTS, return_tensors="np", **options)
        found = ours(self.TEXTS, return_tensors=kind, **options)
        for name in ("input_ids", "attention_mask"):
            assert isinstance(found[name], np.ndarray if kind == "np" else jax.Array)
            assert found[name].dtype == np.int32
            np.testing.assert_array_equal(found[name], expected[name])
        assert ours("a cat", return_tensors=kind)["input_ids"].shape == (1, 3)

    def test_token_ids_in_place_of_texts(self, pair):
        ours, reference = pair
        with quiet_reference():
            assert ours([5, 7, 9])["input_ids"] == reference([5, 7, 9])["input_ids"]
            assert ours([[5], [7, 1]])["input_ids"] == reference([[5], [7, 1]])["input_ids"]

    def test_what_is_given_is_left_as_it_was(self, pair):
        rows = [[5, 7, 9], [6]]
        pair[0](rows, padding="max_length", truncation=True, max_length=3)
        ids = [5, 7]
        pair[0].build_inputs_with_special_tokens(ids)
        assert (rows, ids) == ([[5, 7, 9], [6]], [5, 7])

    def test_rows_of_a_mask_are_apart(self, pair):
        mask = pair[0](["a", "a"]).attention_mask
        mask[0][0] = 9
        assert mask[1][0] == 1

    def test_encode(self, pair):
        ours, reference = pair
        assert ours.encode("a photo", "dog") == reference.encode("a photo", "dog")
        assert ours.encode("a photo of a dog", max_length=3) == reference.encode("a photo of a dog", max_length=3)


class TestPieces:
    def test_helpers(self, pair):
        ours, reference = pair
        for first, second in ([[5, 6], None], [[], None], [[5, 1], [7]], [[], []]):
            with quiet_reference():
                for name in (
                    "build_inputs_with_special_tokens",
                    "create_token_type_ids_from_sequences",
                    "get_special_tokens_mask",
                ):
                    assert getattr(ours, name)(first, second) == getattr(reference, name)(first, second), name
        ids = [5, 1, 2, 0]
        expected = reference.get_special_tokens_mask(ids, already_has_special_tokens=True)
        assert ours.get_special_tokens_mask(ids, already_has_special_tokens=True) == expected == [0, 1, 1, 0]
        with pytest.raises(ValueError, match="already_has_special_tokens"):
            ours.get_special_tokens_mask(ids, ids, already_has_special_tokens=True)

    def test_vocabulary(self, spiece):
        ours, reference = both(spiece, additional_special_tokens=EXTRA)
        assert ours.get_vocab() == reference.get_vocab()
        assert (len(ours), ours.vocab_size) == (len(reference), reference.vocab_size)
        assert ours.all_special_tokens == reference.all_special_tokens
        assert ours.all_special_ids == reference.all_special_ids
        tokens = ["▁cat", "</s>", "nosuchpiece", "ж", "<extra_id_0>"]
        assert ours.convert_tokens_to_ids(tokens) == reference.convert_tokens_to_ids(tokens)
        assert ours.convert_tokens_to_ids("▁cat") == reference.convert_tokens_to_ids("▁cat")
        assert ours.convert_ids_to_tokens(5) == reference.convert_ids_to_tokens(5)
        ids = [*range(20), len(ours) - 1]
        for skip in (False, True):
            assert ours.convert_ids_to_tokens(ids, skip) == reference.convert_ids_to_tokens(ids, skip)

    def test_decoding(self, pair):
        ours, reference = pair
        rng = np.random.default_rng(0)
        rows = [ours(text)["input_ids"] for text in fuzz(300, seed=5)]
        rows += [rng.integers(0, ours.vocab_size, rng.integers(0, 9)).tolist() for _ in range(300)]
        for skip in (False, True):
            for clean in (None, True):
                options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
                expected = [reference.decode(row, **options) for row in rows]
                assert [ours.decode(row, **options) for row in rows] == expected
                assert ours.batch_decode(rows, **options) == expected
        assert ours.decode(5) == reference.decode(5)
        square = np.array([[5, 6, 1], [7, 1, 1]], np.int32)
        assert ours.batch_decode(square) == ours.batch_decode(jax.numpy.asarray(square)) == ours.decode(square)
        assert ours.decode(square) == reference.batch_decode(square)

    def test_convert_tokens_to_string(self, pair):
        ours, reference = pair
        tokens = ["▁a", "</s>", "<unk>", "▁cat", "s", "</s>"]
        assert ours.convert_tokens_to_string(tokens) == reference.convert_tokens_to_string(tokens)

    @pytest.mark.parametrize("keep", [None, "{}", "."])
    @pytest.mark.parametrize("lower", [True, False])
    def test_canonical_text(self, spiece, keep, lower):
        ours, reference = both(spiece, do_lower_case=lower)
        for text in ["A Photo of {}.", "  { x }\t{}{}.\n. ", "..", *fuzz(200, seed=6)]:
            options = {"keep_punctuation_exact_string": keep}
            assert ours.canonicalize_text(text, **options) == reference.canonicalize_text(text, **options)
            assert ours.remove_punctuation(text) == reference.remove_punctuation(text)

    def test_survives_pickling(self, pair):
        copy = pickle.loads(pickle.dumps(pair[0]))
        texts = fuzz(50, seed=7)
        assert copy(texts) == pair[0](texts)


class TestFiles:
    TEXTS = [*captions(20, 9), *fuzz(200, seed=8), "a <extra_id_0> b"]

    @pytest.mark.parametrize("extra", [None, EXTRA])
    def test_the_reference_reads_ours(self, spiece, tmp_path, extra):
        ours = SiglipTokenizer(spiece, additional_special_tokens=extra, model_max_length=16)
        ours.save_pretrained(tmp_path / "out")
        with quiet_reference():
            reference = transformers.SiglipTokenizer.from_pretrained(tmp_path / "out")
            assert reference(self.TEXTS)["input_ids"] == ours(self.TEXTS, verbose=False)["input_ids"]
        assert reference.model_max_length == 16
        again = SiglipTokenizer.from_pretrained(tmp_path / "out")
        assert again(self.TEXTS, verbose=False) == ours(self.TEXTS, verbose=False)
        assert (tmp_path / "out" / "spiece.model").read_bytes() == spiece.read_bytes()

    @pytest.mark.parametrize("extra", [None, EXTRA])
    def test_we_read_the_reference(self, spiece, tmp_path, extra):
        with quiet_reference():
            reference = transformers.SiglipTokenizer(
                str(spiece),
                additional_special_tokens=extra,
                model_max_length=16,
                do_lower_case=False,
                padding_side="left",
            )
            reference.save_pretrained(tmp_path)
            expected = reference(self.TEXTS, padding=True)
        ours = SiglipTokenizer.from_pretrained(tmp_path)
        assert dict(ours(self.TEXTS, padding=True, verbose=False)) == dict(expected)
        assert (ours.model_max_length, ours.do_lower_case) == (16, False)
        ours.save_pretrained(tmp_path / "again")
        with quiet_reference():
            again = transformers.SiglipTokenizer.from_pretrained(tmp_path / "again")
            assert dict(again(self.TEXTS, padding=True)) == dict(expected)

    def test_version_4(self, spiece, tmp_path):
        shutil.copy(spiece, tmp_path / "spiece.model")
        end = {"content": "</s>", "lstrip": True, "normalized": False, "rstrip": True, "single_word": False}
        unknown = end | {"content": "<unk>"}
        config = {"added_tokens_decoder": {"1": end | {"special": True}, "2": unknown | {"special": True}}}
        config |= {"additional_special_tokens": [], "clean_up_tokenization_spaces": True, "do_lower_case": True}
        config |= {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>", "model_max_length": 64}
        config |= {"model_input_names": ["input_ids"], "sp_model_kwargs": {}, "tokenizer_class": "SiglipTokenizer"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        older = {"eos_token": end, "pad_token": end, "unk_token": "<unk>"}
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(older))
        for name in ("tokenizer_config.json", "special_tokens_map.json"):  # with both, then with the older one only
            ours = SiglipTokenizer.from_pretrained(tmp_path)
            with quiet_reference():
                reference = transformers.SiglipTokenizer.from_pretrained(tmp_path)
                assert dict(ours(self.TEXTS, verbose=False)) == dict(reference(self.TEXTS))
                assert ours.decode([5, 1, 6]) == reference.decode([5, 1, 6])
            (tmp_path / name).unlink()

    def test_legacy_added_tokens(self, spiece, tmp_path):
        shutil.copy(spiece, tmp_path / "spiece.model")
        size = SiglipTokenizer(spiece).vocab_size
        (tmp_path / "added_tokens.json").write_text(json.dumps({"<a>": size, "<b>": size + 1}))
        (tmp_path / "special_tokens_map.json").write_text('{"additional_special_tokens": ["<a>"]}')
        ours = SiglipTokenizer.from_pretrained(tmp_path)
        ids = ours("x <a> y <b>")["input_ids"]
        assert size in ids
        assert size + 1 in ids
        assert ours.decode([size, size + 1], skip_special_tokens=True) == "<b>"

    def test_what_we_do_not_know_survives(self, spiece, tmp_path):
        shutil.copy(spiece, tmp_path / "spiece.model")
        (tmp_path / "tokenizer_config.json").write_text('{"legacy": false, "processor_class": "SiglipProcessor"}')
        SiglipTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "out")
        text = (tmp_path / "out" / "tokenizer_config.json").read_text()
        assert '"legacy": false' in text
        assert '"processor_class"' in text

    def test_save_vocabulary(self, pair, spiece, tmp_path):
        assert pair[0].save_vocabulary(tmp_path, "en") == (str(tmp_path / "en-spiece.model"),)
        assert [p.name for p in tmp_path.iterdir()] == ["en-spiece.model"]
        assert (tmp_path / "en-spiece.model").read_bytes() == spiece.read_bytes()
        with pytest.raises(FileNotFoundError, match="no such directory"):
            pair[0].save_vocabulary(tmp_path / "nowhere")

    def test_arguments_take_precedence_and_a_file_will_do(self, spiece):
        assert SiglipTokenizer.from_pretrained(spiece, model_max_length=16).model_max_length == 16
        assert SiglipTokenizer.from_pretrained(spiece.parent, do_lower_case=False).do_lower_case is False


class TestMistakes:
    @pytest.mark.parametrize("text", [None, 3, [], ["a", None], [["a", "b", "c"]], [3.5], [[]], {"a": 1}, b"a"])
    def test_no_text(self, pair, text):
        with pytest.raises(ValueError, match=r"^text must be [^\n]*, got [^\n]*$"):
            pair[0](text)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"padding": "max"}, "padding must be one of"),
            ({"truncation": "left"}, "truncation must be one of"),
            ({"return_tensors": "pt"}, "return_tensors must be one of None, 'np', 'jax'"),
            ({"max_length": 0}, "max_length must be at least 1, got 0"),
            ({"text_pair": ["a"]}, r"text_pair must hold 2 texts, as many as text, got \['a'\]"),
            ({"return_tensors": "np"}, "pass padding='max_length'"),
            ({"return_tensors": "np", "padding": "max_length", "max_length": 2}, "pass truncation=True"),
        ],
    )
    def test_options(self, pair, options, message):
        with pytest.raises(ValueError, match=message):
            pair[0](["a cat", "a photo of two dogs"], **options)

    def test_no_maximum(self, spiece):
        for unbounded in (None, 1e30):
            with pytest.raises(ValueError, match="pass max_length"):
                SiglipTokenizer(spiece, model_max_length=unbounded)("a", padding="max_length")

    def test_unknown_setting(self, spiece):
        with pytest.raises(ValueError, match="unknown argument 'paddingside'; did you mean 'padding_side'"):
            SiglipTokenizer(spiece, paddingside="left")

    @pytest.mark.parametrize("index", [-1, 10_000])
    def test_id_outside(self, pair, index):
        with pytest.raises(ValueError, match=f"token id must be 0 to .*, got {index}$"):
            pair[0].decode([5, index])

    @pytest.mark.parametrize("data", [b"", b"not a model" * 50])
    def test_broken_vocabulary(self, tmp_path, data):
        (tmp_path / "spiece.model").write_bytes(data)
        with pytest.raises(
            ValueError, match=r"spiece.model: file must be a SentencePiece model, got \d+ other bytes[^\n]*$"
        ):
            SiglipTokenizer.from_pretrained(tmp_path)

    def test_truncated_vocabulary(self, spiece, tmp_path):
        (tmp_path / "spiece.model").write_bytes(spiece.read_bytes()[:1001])
        with pytest.raises(ValueError, match="file must be a SentencePiece model, got 1001 other bytes"):
            SiglipTokenizer.from_pretrained(tmp_path)

    def test_directories_without_a_vocabulary(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no spiece\.model"):
            SiglipTokenizer.from_pretrained(tmp_path)
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(
            ValueError, match=r"tokenizer\.json: file must be a tokenizer of the library tokenizers, got other"
        ):
            SiglipTokenizer.from_pretrained(tmp_path)

    @pytest.mark.parametrize("config", ["{", "[]", '{"added_tokens_decoder": {"x": "y"}}', '{"eos_token": 3}'])
    def test_broken_settings(self, spiece, tmp_path, config):
        shutil.copy(spiece, tmp_path / "spiece.model")
        (tmp_path / "tokenizer_config.json").write_text(config)
        with pytest.raises(ValueError, match=r"^[^\n]*$"):
            SiglipTokenizer.from_pretrained(tmp_path)
