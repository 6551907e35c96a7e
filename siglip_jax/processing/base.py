"""What the tokenizers of SigLIP and SigLIP 2 share besides the call: special tokens, settings, files, decoding.

Mirrors what both reference classes inherit from `PreTrainedTokenizerBase`; an id outside the vocabulary is an error.
"""

import abc
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from siglip_jax.files import write_atomically
from siglip_jax.processing.batch import one_of, refuse_unknown
from siglip_jax.processing.encoding import UNBOUNDED, TextEncoder
from siglip_jax.processing.sequences import Ids
from siglip_jax.processing.tokenizer_files import NAMED, AddedToken, Token, read_settings, write_settings

_CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class TokenizerBase(TextEncoder):
    """Texts to token ids and back, but for the vocabulary, which is the subclass's.

    Attributes:
      model_max_length, model_input_names: those of `TextEncoder`.
      eos_token, unk_token, pad_token, eos_token_id, unk_token_id, pad_token_id: as in the reference.
      special_tokens_map: the tokens with a name, by that name.
      all_special_tokens, all_special_ids: those that carry no text.
      added_tokens_decoder: the tokens that are cut out of a text before the vocabulary's model sees it, by id.
      added_tokens_encoder: their ids, by content.
    """

    vocabulary_file: ClassVar[str]
    _defaults: ClassVar[dict[str, Any]] = {
        "padding_side": "right",
        "truncation_side": "right",
        "model_input_names": ("input_ids", "attention_mask"),
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
    }
    _arguments: ClassVar[tuple[str, ...]]  # of the constructor, that a file of settings may hold
    _cleans_up: ClassVar[bool] = True
    vocab_file: str
    all_special_ids: list[int]
    added_tokens_decoder: dict[int, AddedToken]
    added_tokens_encoder: dict[str, int]

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Ids that the vocabulary's model itself knows."""

    def __init__(
        self,
        *,
        special_tokens: Mapping[str, Token | None],
        additional_special_tokens: Iterable[Token] | None,
        model_max_length: Any,
        settings: Mapping[str, Any],
    ) -> None:
        """Keeps the settings; the subclass reads the vocabulary, then calls `_number_special_tokens`."""
        refuse_unknown(settings, [*self._defaults, *NAMED], type(self).__name__)
        limit = UNBOUNDED + 1 if model_max_length is None else model_max_length
        if not isinstance(limit, (int, float)):
            raise ValueError(f"model_max_length: expected a number of tokens or None, found {limit!r}")
        self.model_max_length = int(1e30) if limit > UNBOUNDED else int(limit)
        self._settings = {name: settings.get(name, default) for name, default in self._defaults.items()}
        self.padding_side = self._settings["padding_side"]
        self.truncation_side = self._settings["truncation_side"]
        names = self._settings["model_input_names"]
        if not isinstance(names, (list, tuple)):
            raise ValueError(f"model_input_names: expected a list, found {names!r}")
        self.model_input_names = list(names)
        self.clean_up_tokenization_spaces: bool = self._settings["clean_up_tokenization_spaces"]
        one_of("padding_side", self.padding_side, ("right", "left"))
        one_of("truncation_side", self.truncation_side, ("right", "left"))

        given = {**special_tokens, **{name: value for name, value in settings.items() if name in NAMED}}
        named = {name: AddedToken.of(given[name]).content for name in NAMED if given.get(name) is not None}
        for name in ("eos_token", "unk_token", "pad_token"):
            if name not in named:
                raise ValueError(f"{name}: expected a token, found None")
        self.special_tokens_map = named
        self.additional_special_tokens = [AddedToken.of(token).content for token in additional_special_tokens or ()]
        self.all_special_tokens = list(dict.fromkeys([*named.values(), *self.additional_special_tokens]))
        self.eos_token, self.unk_token, self.pad_token = (named[f"{n}_token"] for n in ("eos", "unk", "pad"))
        self._unknown_settings: dict[str, Any] = {}

    def _number_special_tokens(self) -> None:
        self.all_special_ids = [self._id(token) for token in self.all_special_tokens]
        self.eos_token_id = self._id(self.eos_token)
        self.unk_token_id: int = self._id(self.unk_token)
        self.pad_token_id = self._id(self.pad_token)

    @classmethod
    def _settings_in(cls, directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns what the files of a directory hold for the constructor, and what else they hold."""
        found, names = read_settings(directory, cls.vocabulary_file), {*cls._defaults, *NAMED, *cls._arguments}
        return {k: v for k, v in found.items() if k in names}, {k: v for k, v in found.items() if k not in names}

    @abc.abstractmethod
    def _vocabulary_bytes(self) -> bytes: ...

    @abc.abstractmethod
    def _settings_of_kind(self) -> dict[str, Any]:
        """Returns what `tokenizer_config.json` says about the kind of tokenizer."""

    @abc.abstractmethod
    def _token(self, index: int) -> str:
        """Returns the token of an id; raises a ValueError if there is none."""

    @abc.abstractmethod
    def _id(self, token: str) -> int:
        """Returns the id of a token, or that of the unknown one."""

    @abc.abstractmethod
    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Returns the text of some tokens; special tokens stand in it as they are."""

    @abc.abstractmethod
    def get_vocab(self) -> dict[str, int]:
        """Returns the id of every token."""

    def __len__(self) -> int:
        return len(self.get_vocab())

    def save_vocabulary(self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None) -> tuple[str]:
        """Writes the vocabulary's file into an existing directory and returns its path.

        Raises:
          FileNotFoundError: if the directory does not exist.
        """
        directory, name = Path(save_directory), self.vocabulary_file
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory}: no such directory to write {name} to; make it first")
        file = directory / (f"{filename_prefix}-{name}" if filename_prefix else name)
        write_atomically(file, self._vocabulary_bytes())
        return (str(file),)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *, model_max_length: int | None = None) -> None:
        """Writes the vocabulary and `tokenizer_config.json`, which versions 4 and 5 of the reference read.

        Args:
          model_max_length: to be written instead of the tokenizer's own.
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
        """Returns `a eos`, or `a eos b eos`; where the class says so, an eos that ends one already is not doubled."""
        parts = [token_ids_0] if token_ids_1 is None else [token_ids_0, token_ids_1]
        return [i for ids in parts for i in (*ids, *[self.eos_token_id] * self._lacks_end(ids))]

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
        """Returns zeros, one for each token and each eos; SigLIP knows no token types."""
        return [0] * (len(token_ids_0) + 1 + (0 if token_ids_1 is None else len(token_ids_1) + 1))

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """Returns the id of a token, or the list of ids of several; an unknown token has the id of `<unk>`."""
        return self._id(tokens) if isinstance(tokens, str) else [self._id(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Returns the token of an id, or the list of tokens of several.

        Raises:
          ValueError: for an id outside the vocabulary.
        """
        if isinstance(ids, (int, np.integer)):
            return self._token(int(ids))
        skip = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._token(i) for i in np.asarray(ids, np.int64).ravel().tolist() if i not in skip]

    def _text(self, row: Any, skip_special_tokens: bool) -> str:
        return self.convert_tokens_to_string(self.convert_ids_to_tokens(row, skip_special_tokens))

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """Returns the text of one row of ids, or a list of texts of several rows.

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
        """Returns the texts of several rows of ids."""
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts
