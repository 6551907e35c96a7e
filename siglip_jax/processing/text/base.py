"""The base class of the tokenizers of SigLIP and SigLIP 2: calls, special tokens, settings, files, decoding.

Mirrors what both reference classes inherit from `PreTrainedTokenizerBase`. Differences from it: padding to an unknown
maximum length is an error; rows of unequal length are an error instead of an object array; arrays are int32; token
types are zero, also for the second text of a pair; an id outside the vocabulary is an error.
"""

import abc
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from siglip_jax._checks import check_choice, refuse_unknown
from siglip_jax._files import write_atomically
from siglip_jax.processing.batch import Batch
from siglip_jax.processing.text._sequences import (
    Ids,
    attention,
    is_ids,
    pad,
    stacked,
    strategies,
    texts_and_pairs,
    truncate_all,
)
from siglip_jax.processing.text.settings import NAMED, AddedToken, Token, read_settings, write_settings

UNBOUNDED = 10**20  # the reference writes 1e30 for "no limit"
_CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class TokenizerBase(abc.ABC):
    """Base class that converts texts to token ids and back; each subclass implements its vocabulary.

    Attributes:
      vocabulary_file: name of the vocabulary file in a directory. The subclasses list the other attributes.
    """

    vocabulary_file: ClassVar[str]
    _defaults: ClassVar[dict[str, Any]] = {
        "padding_side": "right",
        "truncation_side": "right",
        "model_input_names": ("input_ids", "attention_mask"),
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
    }
    _arguments: ClassVar[tuple[str, ...]]  # of the constructor, which a file of settings may contain
    _cleans_up: ClassVar[bool] = True
    vocab_file: str
    eos_token_id: int
    pad_token_id: int
    all_special_ids: list[int]
    added_tokens_decoder: dict[int, AddedToken]
    added_tokens_encoder: dict[str, int]

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Number of pieces of the vocabulary, without added tokens."""

    def __init__(
        self,
        *,
        special_tokens: Mapping[str, Token | None],
        additional_special_tokens: Iterable[Token] | None,
        model_max_length: Any,
        settings: Mapping[str, Any],
    ) -> None:
        """Stores the settings; the subclass reads the vocabulary, then calls `_number_special_tokens`.

        Args:
          special_tokens: default token of each name, such as "eos_token"; `settings` takes precedence.
          additional_special_tokens: special tokens without a name; None: none.
          model_max_length: length in tokens of the longest text that the model accepts; None: no limit.
          settings: values of `padding_side` and the other keys of `_defaults`, and of named special tokens.

        Raises:
          ValueError: for an unknown setting or an invalid value.
        """
        refuse_unknown(settings, [*self._defaults, *NAMED], type(self).__name__)
        limit = UNBOUNDED + 1 if model_max_length is None else model_max_length
        if not isinstance(limit, (int, float)):
            raise ValueError(f"model_max_length must be a number of tokens or None, got {limit!r}")
        self.model_max_length = int(1e30) if limit > UNBOUNDED else int(limit)
        self._settings = {name: settings.get(name, default) for name, default in self._defaults.items()}
        self.padding_side = self._settings["padding_side"]
        self.truncation_side = self._settings["truncation_side"]
        names = self._settings["model_input_names"]
        if not isinstance(names, (list, tuple)):
            raise ValueError(f"model_input_names must be a list, got {names!r}")
        self.model_input_names = list(names)
        self.clean_up_tokenization_spaces: bool = self._settings["clean_up_tokenization_spaces"]
        check_choice("padding_side", self.padding_side, ("right", "left"))
        check_choice("truncation_side", self.truncation_side, ("right", "left"))

        given = {**special_tokens, **{name: value for name, value in settings.items() if name in NAMED}}
        named = {name: AddedToken.of(given[name]).content for name in NAMED if given.get(name) is not None}
        for name in ("eos_token", "unk_token", "pad_token"):
            if name not in named:
                raise ValueError(f"{name} must be a token, got None")
        self.special_tokens_map = named
        self.additional_special_tokens = [AddedToken.of(token).content for token in additional_special_tokens or ()]
        self.all_special_tokens = list(dict.fromkeys([*named.values(), *self.additional_special_tokens]))
        self.eos_token, self.unk_token, self.pad_token = (named[f"{n}_token"] for n in ("eos", "unk", "pad"))
        self._unknown_settings: dict[str, Any] = {}

    def _number_special_tokens(self) -> None:
        """Sets the ids of the special tokens."""
        self.all_special_ids = [self._id(token) for token in self.all_special_tokens]
        self.eos_token_id = self._id(self.eos_token)
        self.unk_token_id: int = self._id(self.unk_token)
        self.pad_token_id = self._id(self.pad_token)

    @abc.abstractmethod
    def encode_texts(self, texts: Sequence[str], split_special_tokens: bool = False) -> list[Ids]:
        """Returns the ids of each text, without the final eos; all texts are encoded together, which is faster.

        Args:
          texts: texts to encode.
          split_special_tokens: whether the string of a special token is split as any other text.
        """

    @abc.abstractmethod
    def _lacks_end(self, ids: Ids) -> bool:
        """Returns whether an eos must be appended to the ids of a text."""

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
        """Returns the token ids of one text, a list of texts, or a list of pairs.

        Texts are neither padded nor truncated by default, as in the reference; `SiglipProcessor` does both.

        Args:
          text: a text, a list of texts, or a list of (text, second text) pairs; a list of token ids counts as a text.
          text_pair: a second text, which follows the text and its eos, or a list with one per text; None: none.
          add_special_tokens: whether an eos is appended to each text.
          padding: True or "longest" pads to the longest text, "max_length" to `max_length`, False not at all.
          truncation: how texts longer than `max_length` are shortened: True or "longest_first" shortens the longer of
            a pair first, "only_first" and "only_second" only one of them, False none; the eos is always kept. None:
            True if `max_length` is given and `padding` is False, else False.
          max_length: length in tokens for padding and truncation; None: `model_max_length`.
          padding_side: side that padding is added to, "right" or "left"; None: that of the tokenizer.
          pad_to_multiple_of: number of which the padded length becomes a multiple; None: 1.
          return_tensors: kind of the result: "np" for numpy arrays, "jax" for JAX arrays, None for lists.
          return_attention_mask: whether `attention_mask` is returned, 1 for tokens and 0 for padding; None: if it is
            in `model_input_names`.
          return_special_tokens_mask: whether `special_tokens_mask` is returned, 1 for eos and padding and 0 for
            other tokens.
          return_token_type_ids: whether `token_type_ids` are returned, which are all 0; None: if they are in
            `model_input_names`.
          split_special_tokens: whether the string of a special token is split as any other text; None: as set for the
            tokenizer.

        Returns:
          A `Batch` of `input_ids` and the requested masks: arrays of shape (texts, positions) int32 with
          `return_tensors`, else lists of ids for one text and lists of such lists for several.

        Raises:
          ValueError: for values that are not texts, an invalid option, a missing maximum length, and arrays of rows
            that differ in length.
        """
        check_choice("return_tensors", return_tensors, (None, "np", "jax"))
        side = padding_side or self.padding_side
        check_choice("padding_side", side, ("right", "left"))
        padding, truncation = strategies(padding, truncation, max_length)
        if max_length is None and (padding == "max_length" or truncation != "do_not_truncate"):
            if self.model_max_length > UNBOUNDED:
                raise ValueError(
                    "max_length must be given for a tokenizer without model_max_length, got None; pass max_length,"
                    " for example 64"
                )
            max_length = self.model_max_length
        split = bool(self._settings["split_special_tokens"] if split_special_tokens is None else split_special_tokens)

        single, texts, pairs = texts_and_pairs(text, text_pair)
        firsts, seconds = self._encoded(texts, split), None if pairs is None else self._encoded(pairs, split)
        if max_length:
            room = max_length - add_special_tokens * (1 if seconds is None else 2)
            firsts, seconds = truncate_all(firsts, seconds, room, truncation, self.truncation_side)
        parts = [firsts] if seconds is None else [firsts, seconds]
        if add_special_tokens:
            for ids in itertools.chain(*parts):
                if self._lacks_end(ids):
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

    def _encoded(self, texts: Sequence[Any], split: bool) -> list[Ids]:
        """Returns the ids of texts, or a copy of texts that are ids already."""
        if all(isinstance(text, str) for text in texts):
            return self.encode_texts(texts, split)
        if all(is_ids(text) for text in texts):
            return [list(map(int, ids)) for ids in texts]
        wrong = next(text for text in texts if not isinstance(text, str))
        raise ValueError(f"text must be a string or a list of strings, got {wrong!r} in the list")

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """Returns the `input_ids` of a call.

        Args:
          text: a text, a list of texts, or a list of (text, second text) pairs; a list of token ids counts as a text.
          text_pair: a second text, which follows the text and its eos, or a list with one per text; None: none.
          **options: further keyword arguments of the call, such as `padding`, `truncation` or `max_length`.

        Returns:
          A list of ids for one text, a list of such lists for several, or an array with `return_tensors`.

        Raises:
          ValueError: for values that are not texts, or an invalid option.
        """
        return self(text, text_pair, return_attention_mask=False, **options)["input_ids"]

    @classmethod
    def _settings_in(cls, directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the constructor's arguments in the files of a directory, and the other settings in them."""
        found, names = read_settings(directory, cls.vocabulary_file), {*cls._defaults, *NAMED, *cls._arguments}
        return {k: v for k, v in found.items() if k in names}, {k: v for k, v in found.items() if k not in names}

    @abc.abstractmethod
    def _vocabulary_bytes(self) -> bytes:
        """Returns the contents of the vocabulary file."""

    @abc.abstractmethod
    def _settings_of_kind(self) -> dict[str, Any]:
        """Returns the settings in `tokenizer_config.json` that identify the kind of tokenizer."""

    @abc.abstractmethod
    def _token(self, index: int) -> str:
        """Returns the token of an id; raises a ValueError if there is none."""

    @abc.abstractmethod
    def _id(self, token: str) -> int:
        """Returns the id of a token, or that of the unknown token."""

    @abc.abstractmethod
    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Returns the text of some tokens, in which special tokens appear as their strings.

        Args:
          tokens: pieces and special tokens, as `tokenize` or `convert_ids_to_tokens` returns them.
        """

    @abc.abstractmethod
    def get_vocab(self) -> dict[str, int]:
        """Returns the id of every piece and added token."""

    def __len__(self) -> int:
        """Returns the number of pieces and added tokens."""
        return len(self.get_vocab())

    def save_vocabulary(self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None) -> tuple[str]:
        """Writes the vocabulary file.

        Args:
          save_directory: path of an existing directory.
          filename_prefix: prefix of the file name, which a hyphen follows; None: no prefix.

        Returns:
          A tuple of the path of the file.

        Raises:
          FileNotFoundError: if the directory does not exist.
        """
        directory, name = Path(save_directory), self.vocabulary_file
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory}: no such directory to write {name} to; create it first")
        file = directory / (f"{filename_prefix}-{name}" if filename_prefix else name)
        write_atomically(file, self._vocabulary_bytes())
        return (str(file),)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *, model_max_length: int | None = None) -> None:
        """Writes the vocabulary and `tokenizer_config.json`, which `transformers` 4 and 5 read.

        Args:
          save_directory: path of the directory; it is created if missing.
          model_max_length: length in tokens that is written as `model_max_length`; None: that of the tokenizer.
        """
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.save_vocabulary(directory)
        settings = {name: value for name, value in self._settings.items() if value != self._defaults[name]}
        settings |= self.special_tokens_map | {
            "additional_special_tokens": self.additional_special_tokens,
            "model_max_length": model_max_length or self.model_max_length,
        }
        settings |= self._settings_of_kind()
        write_settings(directory, self._unknown_settings | settings, self.added_tokens_decoder)

    def build_inputs_with_special_tokens(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> Ids:
        """Returns the ids of a text and an eos, or of a pair with an eos after each text.

        `SiglipTokenizer` appends no eos to ids that end with one, `Siglip2Tokenizer` always appends one.

        Args:
          token_ids_0: ids of the text.
          token_ids_1: ids of the second text; None: there is none.
        """
        parts = [token_ids_0] if token_ids_1 is None else [token_ids_0, token_ids_1]
        return [i for ids in parts for i in (*ids, *[self.eos_token_id] * self._lacks_end(ids))]

    def get_special_tokens_mask(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """Returns a mask of special tokens: 1 for each special token, 0 for other tokens.

        Args:
          token_ids_0: ids of the text.
          token_ids_1: ids of the second text; None: there is none.
          already_has_special_tokens: whether `token_ids_0` contains its special tokens; False: the mask is that of the
            ids with an eos appended to each text.

        Returns:
          A list of 0 and 1, one per token.

        Raises:
          ValueError: if a second text is given with `already_has_special_tokens`.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise ValueError("token_ids_1 must be None with already_has_special_tokens=True, got a list")
            return [int(i in self.all_special_ids) for i in token_ids_0]
        return [0] * len(token_ids_0) + [1] + ([] if token_ids_1 is None else [0] * len(token_ids_1) + [1])

    def create_token_type_ids_from_sequences(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> list[int]:
        """Returns a list of zeros, one per token and eos, because SigLIP has no token types.

        Args:
          token_ids_0: ids of the text, without its eos.
          token_ids_1: ids of the second text, without its eos; None: there is none.
        """
        return [0] * (len(token_ids_0) + 1 + (0 if token_ids_1 is None else len(token_ids_1) + 1))

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """Returns the id of a token, or a list of the ids of several.

        Args:
          tokens: a token or several; an unknown token gets the id of `unk_token`.
        """
        return self._id(tokens) if isinstance(tokens, str) else [self._id(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Returns the token of an id, or a list of the tokens of several.

        Args:
          ids: an id, or a list or array of ids, which is flattened.
          skip_special_tokens: whether special tokens are left out of a list.

        Raises:
          ValueError: for an id outside the vocabulary.
        """
        if isinstance(ids, (int, np.integer)):
            return self._token(int(ids))
        skip = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._token(i) for i in np.asarray(ids, np.int64).ravel().tolist() if i not in skip]

    def _text(self, row: Any, skip_special_tokens: bool) -> str:
        """Returns the text of one row of ids."""
        return self.convert_tokens_to_string(self.convert_ids_to_tokens(row, skip_special_tokens))

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """Returns the text of one row of token ids, or a list of texts of several rows.

        Args:
          token_ids: token ids, (positions,) or (texts, positions), as an array or lists; or a single id.
          skip_special_tokens: whether special tokens such as the end of the text and padding are left out.
          clean_up_tokenization_spaces: whether blanks before punctuation and English contractions are removed; None: as
            set for the tokenizer. It has no effect for a `Siglip2Tokenizer`, as in the reference.

        Returns:
          A string for one row, a list of strings for several.

        Raises:
          ValueError: for an id outside the vocabulary.
        """
        if not isinstance(token_ids, (int, np.integer)) and len(token_ids) and np.ndim(token_ids[0]):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in token_ids]
        text = self._text([token_ids] if isinstance(token_ids, (int, np.integer)) else token_ids, skip_special_tokens)
        clean = self.clean_up_tokenization_spaces
        if self._cleans_up and (clean if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces):
            for spaced in _CLEAN_UP:
                text = text.replace(spaced, spaced.strip())
        return text

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """Returns the texts of several rows of token ids.

        Args:
          sequences: token ids of each text, (texts, positions), as an array or lists.
          skip_special_tokens: whether special tokens such as the end of the text and padding are left out.
          clean_up_tokenization_spaces: whether blanks before punctuation and English contractions are removed; None: as
            set for the tokenizer. It has no effect for a `Siglip2Tokenizer`, as in the reference.

        Returns:
          A list with one string per row.

        Raises:
          ValueError: for an id outside the vocabulary.
        """
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts
