"""SentencePiece tokenizer of SigLIP; mirrors `transformers.SiglipTokenizer`, same ids, texts encoded in batches.

A text is lower-cased, loses its ASCII punctuation and its runs of blanks, and becomes pieces and a final `</s>`.
Strings of special tokens are cut out before that. SentencePiece always sees `<unk>` and U+2581 before the text, as in
the reference: a text then starts with a word, what follows a special token does not.

It differs from the reference in these: a `</s>` at the end of a text draws no warning, and `special_tokens_mask` is as
long as `input_ids` then too; padding to a maximum that is unknown is an error, not a silent nothing; rows of unequal
length do not become an array of objects; arrays are int32.
"""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from siglip_jax import hub
from siglip_jax.files import write_atomically
from siglip_jax.processing.batch import Batch, one_of, refuse_unknown
from siglip_jax.processing.sequences import Ids, attention, is_ids, pad, stacked, strategies, truncate_all
from siglip_jax.processing.tokenizer_files import NAMED, VOCABULARY, AddedToken, Token, read_settings, write_settings
from siglip_jax.processing.vocabulary import Vocabulary

_UNBOUNDED = 10**20  # the reference writes 1e30 where it means "no limit"
_SETTINGS: dict[str, Any] = {
    "padding_side": "right",
    "truncation_side": "right",
    "model_input_names": ("input_ids", "attention_mask"),
    "clean_up_tokenization_spaces": False,
    "split_special_tokens": False,
    "sp_model_kwargs": None,
}


class SiglipTokenizer(Vocabulary):
    """Texts to token ids and back.

    Attributes:
      model_max_length: the longest text the model takes, in tokens.
      model_input_names: what `__call__` returns by default.
      eos_token, unk_token, pad_token, eos_token_id, unk_token_id, pad_token_id: as in the reference.
    """

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        *,
        eos_token: Token = "</s>",
        unk_token: Token = "<unk>",
        pad_token: Token = "</s>",
        additional_special_tokens: Sequence[Token] | None = None,
        model_max_length: int | float | None = 64,
        do_lower_case: bool = True,
        added_tokens_decoder: dict[int, AddedToken] | None = None,
        **settings: Any,
    ) -> None:
        """Reads a `spiece.model`.

        Args:
          vocab_file: the SentencePiece model.
          model_max_length: in tokens; None for no limit.
          added_tokens_decoder: further tokens that are cut out of a text before SentencePiece sees it, by id; only
            here, as in the reference, does it count whether a token stands alone or takes blanks along.
          **settings: `padding_side`, `truncation_side`, `model_input_names`, `clean_up_tokenization_spaces`,
            `split_special_tokens`, `sp_model_kwargs`, and more special tokens (`bos_token`, `sep_token`, ...).

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if it is not a SentencePiece model, or for an unknown setting.
        """
        refuse_unknown(settings, [*_SETTINGS, *NAMED], "SiglipTokenizer")
        unbounded = model_max_length is None or model_max_length > _UNBOUNDED
        self.model_max_length = int(1e30) if unbounded else int(model_max_length or 0)
        self._settings = {name: settings.pop(name, default) for name, default in _SETTINGS.items()}
        self.padding_side: str = self._settings["padding_side"]
        self.truncation_side: str = self._settings["truncation_side"]
        self.model_input_names = list(self._settings["model_input_names"])
        one_of("padding_side", self.padding_side, ("right", "left"))
        one_of("truncation_side", self.truncation_side, ("right", "left"))

        given = {"eos_token": eos_token, "unk_token": unk_token, "pad_token": pad_token, **settings}
        named = {name: AddedToken.of(given[name]).content for name in NAMED if given.get(name) is not None}
        self.special_tokens_map = named
        self.additional_special_tokens = [AddedToken.of(token).content for token in additional_special_tokens or ()]
        self.eos_token, self.pad_token = named["eos_token"], named["pad_token"]
        super().__init__(
            os.fspath(vocab_file),
            unk_token=named["unk_token"],
            special_tokens=[*named.values(), *self.additional_special_tokens],
            added_tokens_decoder=added_tokens_decoder or {},
            do_lower_case=do_lower_case,
            clean_up_tokenization_spaces=self._settings["clean_up_tokenization_spaces"],
            options=self._settings["sp_model_kwargs"] or {},
        )
        self.eos_token_id: int = self._id(self.eos_token)
        self.unk_token_id: int = self._id(self.unk_token)
        self.pad_token_id: int = self._id(self.pad_token)
        self._unknown_settings: dict[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        **settings: Any,
    ) -> "SiglipTokenizer":
        """Reads a directory or Hub repository with `spiece.model`, as version 4 or 5 of the reference writes it.

        Args:
          **settings: arguments of the constructor; they take precedence over the files.

        Raises:
          FileNotFoundError: if it or its vocabulary is missing.
          ValueError: if it holds another kind of tokenizer or a broken file.
        """
        path = hub.resolve(name_or_path, revision=revision, local_files_only=local_files_only)
        if path.is_file():
            return cls(path, **settings)
        found = read_settings(path)
        own = ("additional_special_tokens", "model_max_length", "do_lower_case", "added_tokens_decoder")
        known = {name: value for name, value in found.items() if name in {*_SETTINGS, *NAMED, *own}}
        tokenizer = cls(path / VOCABULARY, **known | settings)
        tokenizer._unknown_settings = {name: value for name, value in found.items() if name not in known}
        return tokenizer

    def save_vocabulary(self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None) -> tuple[str]:
        """Writes `spiece.model` into an existing directory and returns its path.

        Raises:
          FileNotFoundError: if the directory does not exist.
        """
        directory = Path(save_directory)
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory}: no such directory to write {VOCABULARY} to; make it first")
        file = directory / (f"{filename_prefix}-{VOCABULARY}" if filename_prefix else VOCABULARY)
        write_atomically(file, self._bytes)
        return (str(file),)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *, model_max_length: int | None = None) -> None:
        """Writes `spiece.model` and `tokenizer_config.json`, which versions 4 and 5 of the reference read.

        Args:
          model_max_length: to be written instead of the tokenizer's own.
        """
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.save_vocabulary(directory)
        settings = {name: value for name, value in self._settings.items() if value != _SETTINGS[name]}
        settings |= self.special_tokens_map | {
            "additional_special_tokens": self.additional_special_tokens,
            "do_lower_case": self.do_lower_case,
            "model_max_length": model_max_length or self.model_max_length,
        }
        write_settings(directory, self._unknown_settings | settings, self.added_tokens_decoder)

    def _ended(self, ids: Ids) -> Ids:
        return ids if ids and ids[-1] == self.eos_token_id else [*ids, self.eos_token_id]

    def build_inputs_with_special_tokens(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> Ids:
        """Returns `a </s>` or `a </s> b </s>`; a `</s>` that ends `a` or `b` already is not doubled."""
        return self._ended(token_ids_0) + ([] if token_ids_1 is None else self._ended(token_ids_1))

    def get_special_tokens_mask(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """Returns 1 where a special token stands, or will stand, and 0 elsewhere.

        Raises:
          ValueError: for a second list of ids that already have their special tokens.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise ValueError("token_ids_1: expected None with already_has_special_tokens=True, found a list")
            return [int(i in self.all_special_ids) for i in token_ids_0]
        return [0] * len(token_ids_0) + [1] + ([] if token_ids_1 is None else [0] * len(token_ids_1) + [1])

    def create_token_type_ids_from_sequences(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> list[int]:
        """Returns zeros, one for each token and each `</s>`; SigLIP knows no token types."""
        return [0] * (len(token_ids_0) + 1 + (0 if token_ids_1 is None else len(token_ids_1) + 1))

    def __call__(
        self,
        text: Any,
        text_pair: Any = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        padding_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = None,
        return_special_tokens_mask: bool = False,
        return_token_type_ids: bool | None = None,
        split_special_tokens: bool | None = None,
    ) -> Batch:
        """Encodes one text, a list of texts, or a list of pairs; lists of token ids may stand for texts.

        By default nothing is padded or cut, as in the reference; `SiglipProcessor` does both.

        Args:
          text_pair: a second text for each.
          padding: False, True or `"longest"`, or `"max_length"`.
          truncation: True or `"longest_first"`, `"only_first"`, `"only_second"`, or False; `</s>` is always kept.
          max_length: in tokens, for both; the default is `model_max_length`.
          return_tensors: None for lists, `"np"`, or `"jax"`.

        Returns:
          `input_ids` and what was asked for; for one text lists of numbers, for several lists of lists, and arrays
          of shape (texts, positions) int32 with `return_tensors`.

        Raises:
          ValueError: for anything else than texts, and for arrays of rows that differ in length.
        """
        one_of("return_tensors", return_tensors, (None, "np", "jax"))
        side = padding_side or self.padding_side
        one_of("padding_side", side, ("right", "left"))
        padding, truncation = strategies(padding, truncation, max_length)
        if max_length is None and (padding == "max_length" or truncation != "do_not_truncate"):
            if self.model_max_length > _UNBOUNDED:
                raise ValueError("this tokenizer knows no maximum length; pass max_length, for example max_length=64")
            max_length = self.model_max_length
        split = bool(self._settings["split_special_tokens"] if split_special_tokens is None else split_special_tokens)

        single, firsts, seconds = self._rows(text, text_pair, split)
        if max_length:
            room = max_length - add_special_tokens * (1 if seconds is None else 2)
            firsts, seconds = truncate_all(firsts, seconds, room, truncation, self.truncation_side)
        parts = [firsts] if seconds is None else [firsts, seconds]
        if add_special_tokens:
            for ids in itertools.chain(*parts):
                if not ids or ids[-1] != self.eos_token_id:
                    ids.append(self.eos_token_id)
        rows = firsts if seconds is None else [a + b for a, b in zip(firsts, seconds, strict=True)]
        special: list[Ids] = []
        if return_special_tokens_mask:
            ends = [[[0] * (len(ids) - 1) + [1] if add_special_tokens else [0] * len(ids) for ids in p] for p in parts]
            special = [list(itertools.chain(*row)) for row in zip(*ends, strict=True)]
        width = None
        if padding != "do_not_pad":
            width = max(map(len, rows)) if padding == "longest" else int(max_length or 0)
            width += -width % (pad_to_multiple_of or 1)

        wants_types, wants_mask = (
            name in self.model_input_names if given is None else given
            for name, given in (("token_type_ids", return_token_type_ids), ("attention_mask", return_attention_mask))
        )
        batch = Batch()
        if return_tensors:
            batch["input_ids"], there = stacked(rows, width, self.pad_token_id, side)
            if wants_types:
                batch["token_type_ids"] = np.zeros(there.shape, np.int32)
            if return_special_tokens_mask:
                batch["special_tokens_mask"], _ = stacked(special, width, 1, side)
            if wants_mask:
                batch["attention_mask"] = there.astype(np.int32)
            return batch if return_tensors == "np" else Batch({k: jnp.asarray(v) for k, v in batch.items()})
        mask = attention(rows, width, side) if wants_mask else []
        pad(rows, width or 0, self.pad_token_id, side)
        pad(special, width or 0, 1, side)
        batch["input_ids"] = rows
        if wants_types:
            batch["token_type_ids"] = [[0] * len(row) for row in rows]
        if return_special_tokens_mask:
            batch["special_tokens_mask"] = special
        if wants_mask:
            batch["attention_mask"] = mask
        return Batch({name: values[0] for name, values in batch.items()}) if single else batch

    def _rows(self, text: Any, pair: Any, split: bool) -> tuple[bool, list[Ids], list[Ids] | None]:
        """Returns whether one text was given, its ids, and those of its pair, all as lists for several texts."""
        single = isinstance(text, str) or is_ids(text)
        texts = [text] if single else text
        pairs = [pair] if single and pair is not None else pair
        if not isinstance(texts, (list, tuple)) or not texts:
            raise ValueError(f"text: expected a string or a list of at least one string, found {text!r}")
        if pairs is None and any(isinstance(t, (list, tuple)) and not is_ids(t) for t in texts):
            if not all(isinstance(t, (list, tuple)) and len(t) == 2 for t in texts):
                raise ValueError("text: expected strings, or pairs of two strings, found a list of other lists")
            texts, pairs = [t[0] for t in texts], [t[1] for t in texts]
        if pairs is not None and (not isinstance(pairs, (list, tuple)) or len(pairs) != len(texts)):
            raise ValueError(f"text_pair: expected {len(texts)} texts, as many as in text, found {pair!r}")
        return single, self._encoded(texts, split), None if pairs is None else self._encoded(pairs, split)

    def _encoded(self, texts: Sequence[Any], split: bool) -> list[Ids]:
        if all(isinstance(text, str) for text in texts):
            return self.encode_texts(texts, split)
        if all(is_ids(text) for text in texts):
            return [list(map(int, ids)) for ids in texts]
        wrong = next(text for text in texts if not isinstance(text, str))
        raise ValueError(f"text: expected a string or a list of strings, found {wrong!r} in the list")

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """Returns only the `input_ids` of `__call__`, which takes the same options."""
        return self(text, text_pair, return_attention_mask=False, **options)["input_ids"]
