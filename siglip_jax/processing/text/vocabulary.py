"""Tokens and their ids: special tokens, added tokens, conversions in both directions, decoding.

Mirrors the part of `PreTrainedTokenizerBase` that does not split texts. Differences from it: a token without which a
call cannot be answered is an error instead of None among the ids; an id outside the vocabulary is an error; a token
that is added again keeps its id.
"""

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from siglip_jax._checks import check_choice
from siglip_jax.processing.text._sequences import Ids
from siglip_jax.processing.text.settings import NAMED, AddedToken

_CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class _SpecialToken:
    """Attribute that holds a named special token, or its id if the attribute's name ends with `_id`; None: unset."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._token, self._is_id = name.removesuffix("_id"), name.endswith("_id")

    def __get__(self, vocabulary: Any, owner: type | None = None) -> Any:
        if vocabulary is None:
            return self
        token = vocabulary.special_tokens_map.get(self._token)
        return vocabulary.convert_tokens_to_ids(token) if self._is_id and token is not None else token

    def __set__(self, vocabulary: Any, value: Any) -> None:
        token = vocabulary.convert_ids_to_tokens(value) if self._is_id and value is not None else value
        vocabulary._name_special_token(self._token, token)


class Vocabulary(abc.ABC):
    """Base class of the tokenizers: special and added tokens, conversion of tokens and ids.

    Attributes:
      bos_token: token that begins a text; SigLIP has none. Special tokens and their ids may be assigned; None: unset.
      bos_token_id: its id.
      eos_token: token that ends a text.
      eos_token_id: its id.
      unk_token: token that replaces unknown pieces.
      unk_token_id: its id.
      sep_token: token between two texts; SigLIP has none.
      sep_token_id: its id.
      pad_token: token of padding.
      pad_token_id: its id.
      cls_token: token whose output stands for a text; SigLIP has none.
      cls_token_id: its id.
      mask_token: token that replaces masked ones; SigLIP has none.
      mask_token_id: its id.
    """

    bos_token = _SpecialToken()
    bos_token_id = _SpecialToken()
    eos_token = _SpecialToken()
    eos_token_id = _SpecialToken()
    unk_token = _SpecialToken()
    unk_token_id = _SpecialToken()
    sep_token = _SpecialToken()
    sep_token_id = _SpecialToken()
    pad_token = _SpecialToken()
    pad_token_id = _SpecialToken()
    cls_token = _SpecialToken()
    cls_token_id = _SpecialToken()
    mask_token = _SpecialToken()
    mask_token_id = _SpecialToken()

    vocab_file: str
    clean_up_tokenization_spaces: bool
    _cleans_up: ClassVar[bool] = True
    _named: dict[str, str]
    _extra: list[str]

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Number of pieces of the vocabulary, without added tokens."""

    @property
    @abc.abstractmethod
    def largest_id(self) -> int:
        """Largest id that a text can have."""

    @property
    @abc.abstractmethod
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Tokens that are matched in a text before it is split into pieces, by id; `add_tokens` adds to them."""

    @abc.abstractmethod
    def get_vocab(self) -> dict[str, int]:
        """Returns the id of every piece and added token."""

    @abc.abstractmethod
    def _add(self, tokens: Sequence[AddedToken]) -> int:
        """Adds tokens to those matched in a text; returns the number of new ids."""

    @abc.abstractmethod
    def _token(self, index: int) -> str:
        """Returns the token of an id; raises a ValueError if there is none."""

    @abc.abstractmethod
    def _id(self, token: str) -> int:
        """Returns the id of a token, or that of the unknown token."""

    @abc.abstractmethod
    def _refresh(self) -> None:
        """Recomputes what follows from the special and the added tokens; called after each change of either."""

    @abc.abstractmethod
    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Returns the text of some tokens, in which special tokens appear as their strings.

        Args:
          tokens: pieces and special tokens, as `tokenize` or `convert_ids_to_tokens` returns them.
        """

    def _name_special_token(self, name: str, value: Any) -> None:
        """Sets or, with None, unsets the special token of a name."""
        if value is None:
            self._named.pop(name, None)
        else:
            self._named[name] = AddedToken.of(value, name=name).content
        self._refresh()

    def _needed(self, name: str, use: str) -> int:
        """Returns the id of a special token; raises a ValueError if it is unset."""
        index = getattr(self, f"{name}_id")
        if index is None:
            raise ValueError(f"{name} must be a token {use}, got None; set tokenizer.{name}")
        return index

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Special tokens that have a name, by that name, such as "eos_token"."""
        return {name: self._named[name] for name in NAMED if name in self._named}

    @property
    def additional_special_tokens(self) -> list[str]:
        """Special tokens without a name; assigned tokens should be in the vocabulary."""
        return list(self._extra)

    @additional_special_tokens.setter
    def additional_special_tokens(self, tokens: Any) -> None:
        if isinstance(tokens, (str, Mapping)) or not isinstance(tokens, (Iterable, type(None))):
            raise ValueError(f"additional_special_tokens must be a list of tokens, got {tokens!r}")
        self._extra = [AddedToken.of(token, name="additional_special_tokens").content for token in tokens or ()]
        self._refresh()

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        """Ids of the special tokens without a name."""
        return self.convert_tokens_to_ids(self._extra)

    @additional_special_tokens_ids.setter
    def additional_special_tokens_ids(self, ids: Iterable[int]) -> None:
        self.additional_special_tokens = self.convert_ids_to_tokens(list(ids))

    extra_special_tokens = additional_special_tokens  # the name since version 5 of the reference
    extra_special_tokens_ids = additional_special_tokens_ids

    @property
    def all_special_tokens(self) -> list[str]:
        """All special tokens, which carry no text."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self._extra]))

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of all special tokens, in the order of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Ids of the tokens that are matched in a text before it is split into pieces, by content."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """Returns the ids of the tokens that are matched in a text before it is split into pieces, by content."""
        return self.added_tokens_encoder

    def __len__(self) -> int:
        """Returns the number of pieces and added tokens."""
        return len(self.get_vocab())

    def check_rows(self, rows: int) -> None:
        """Raises a `ValueError` unless the vocabulary fits a model's table of token embeddings.

        The table must have a row for each id. It may have up to a tenth more rows, as tables that are padded to a round
        number have; a vocabulary that is smaller still is another one, or was cut off.

        Args:
          rows: number of rows of the table, `vocab_size` of the model's configuration.
        """
        if self.largest_id >= rows:
            worst = self.convert_ids_to_tokens(self.largest_id)
            raise ValueError(
                f"{self.vocab_file}: ids must be below the {rows} rows of the model's table, got {self.largest_id} of"
                f" {worst[:40]!r}; use the tokenizer of this model, or enlarge the table"
            )
        if len(self) < 0.9 * rows:
            raise ValueError(
                f"{self.vocab_file}: vocabulary must have about as many pieces as the model's table has rows, {rows},"
                f" got {len(self)}; fetch it again, or use the tokenizer of this model"
            )

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Adds tokens that are matched in a text before it is split into pieces.

        A token that the vocabulary lacks gets the next free id. A model needs a row of its embedding table for it:
        ids beyond the table are refused.

        Args:
          new_tokens: a token or a list of tokens, each a string, an `AddedToken` of `tokenizers`, or a dictionary of
            its fields; None: none.
          special_tokens: whether the tokens are special, that is, carry no text and are left out of decoded text by
            `skip_special_tokens`.

        Returns:
          The number of tokens that got a new id.

        Raises:
          ValueError: for a value that is not a token.

        Example:
          >>> from siglip_jax.assets import BUNDLED_MODEL
          >>> from siglip_jax.processing import SiglipTokenizer
          >>> tokenizer = SiglipTokenizer.from_pretrained(BUNDLED_MODEL)
          >>> tokenizer.add_tokens(["<new>", "<new>"]), tokenizer.tokenize("a <new> horse")
          (1, ['▁a', '<new>', 'horse'])
        """
        listed = (
            new_tokens if isinstance(new_tokens, (list, tuple)) and not isinstance(new_tokens, AddedToken) else None
        )
        made = []
        if new_tokens is None:
            return 0
        for value in [new_tokens] if listed is None else listed:
            if isinstance(value, str):
                if not value or value in self.added_tokens_encoder:
                    continue
                special = special_tokens or value in self.all_special_tokens
                made.append(AddedToken(value, normalized=not special, special=special))
            else:
                token = AddedToken.of(value, name="new_tokens")
                made.append(token._replace(special=True) if special_tokens else token)
        count = self._add(made) if made else 0
        self._refresh()
        return count

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_extra_special_tokens: bool = True
    ) -> int:
        """Sets special tokens, and adds those that the vocabulary lacks.

        Args:
          special_tokens_dict: tokens by name, such as "pad_token"; "additional_special_tokens", or
            "extra_special_tokens", names a list of tokens without a name.
          replace_extra_special_tokens: whether the tokens without a name replace the earlier ones, which stay in the
            vocabulary, or are appended to them.

        Returns:
          The number of tokens that got a new id.

        Raises:
          ValueError: for an unknown name, or a value that is not a token.

        Example:
          >>> from siglip_jax.assets import BUNDLED_MODEL
          >>> from siglip_jax.processing import SiglipTokenizer
          >>> tokenizer = SiglipTokenizer.from_pretrained(BUNDLED_MODEL)
          >>> tokenizer.add_special_tokens({"pad_token": "<unk>", "cls_token": "<cls>"})
          1
          >>> tokenizer.pad_token_id, tokenizer.cls_token_id == tokenizer.vocab_size
          (2, True)
        """
        extra = ("extra_special_tokens", "additional_special_tokens")
        tokens: list[AddedToken] = []
        for name, value in special_tokens_dict.items():
            check_choice("name of a special token", name, (*NAMED, *extra))
            if name not in extra:
                tokens.append(AddedToken.of(value, name=name))
                self._name_special_token(name, tokens[-1])
                continue
            if not isinstance(value, (list, tuple)):
                raise ValueError(f"{name} must be a list of tokens, got {value!r}")
            listed = [AddedToken.of(token, name=name) for token in value]
            new = [t for t in listed if replace_extra_special_tokens or t.content not in self._extra]
            self._extra = ([] if replace_extra_special_tokens and new else self._extra) + [t.content for t in new]
            tokens += new
        return self.add_tokens(tokens, special_tokens=True)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Returns the number of special tokens that a call adds to a text or a pair.

        Args:
          pair: whether the number is that of a pair of texts.
        """
        return 2 if pair else 1

    @abc.abstractmethod
    def _lacks_end(self, ids: Ids) -> bool:
        """Returns whether an eos must be appended to the ids of a text."""

    def build_inputs_with_special_tokens(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> Ids:
        """Returns the ids of a text and an eos, or of a pair with an eos after each text.

        `SiglipTokenizer` appends no eos to ids that end with one, `Siglip2Tokenizer` always appends one.

        Args:
          token_ids_0: ids of the text.
          token_ids_1: ids of the second text; None: there is none.
        """
        end = self._needed("eos_token", "to end a text")
        parts = [token_ids_0] if token_ids_1 is None else [token_ids_0, token_ids_1]
        return [i for ids in parts for i in (*ids, *[end] * self._lacks_end(ids))]

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
            special = set(self.all_special_ids)
            return [int(i in special) for i in token_ids_0]
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
        spaces_between_special_tokens: bool = True,
    ) -> Any:
        """Returns the text of one row of token ids, or a list of texts of several rows.

        Args:
          token_ids: token ids, (positions,) or (texts, positions), as an array or lists; or a single id.
          skip_special_tokens: whether special tokens such as the end of the text and padding are left out.
          clean_up_tokenization_spaces: whether blanks before punctuation and English contractions are removed; None: as
            set for the tokenizer. It has no effect for a `Siglip2Tokenizer`, as in the reference.
          spaces_between_special_tokens: has no effect, as in the reference's tokenizers of SigLIP.

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
        spaces_between_special_tokens: bool = True,
    ) -> list[str]:
        """Returns the texts of several rows of token ids.

        Args:
          sequences: token ids of each text, (texts, positions), as an array or lists.
          skip_special_tokens: whether special tokens such as the end of the text and padding are left out.
          clean_up_tokenization_spaces: whether blanks before punctuation and English contractions are removed; None: as
            set for the tokenizer. It has no effect for a `Siglip2Tokenizer`, as in the reference.
          spaces_between_special_tokens: has no effect, as in the reference's tokenizers of SigLIP.

        Returns:
          A list with one string per row.

        Raises:
          ValueError: for an id outside the vocabulary.
        """
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces, spaces_between_special_tokens)
        return [texts] if isinstance(texts, str) else texts
