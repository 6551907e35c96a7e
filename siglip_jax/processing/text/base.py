"""The base class of the tokenizers of SigLIP and SigLIP 2: calls, special tokens, settings, files, decoding.

Mirrors what both reference classes inherit from `PreTrainedTokenizerBase`. Differences from it: padding to an unknown
maximum length is an error; rows of unequal length are an error instead of an object array; arrays are int32; token
types are zero, also for the second text of a pair; an id outside the vocabulary is an error.
"""

import abc
import itertools
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from siglip_jax._checks import check_choice, refuse_unknown
from siglip_jax._fields import check_fields
from siglip_jax._files import output_path, write_atomically
from siglip_jax.processing.batch import Batch
from siglip_jax.processing.text._sequences import (
    Ids,
    as_lists,
    attention,
    is_ids,
    pad,
    padded_width,
    stacked,
    strategies,
    texts_and_pairs,
    truncate_all,
)
from siglip_jax.processing.text.settings import NAMED, SETTINGS, AddedToken, Token, read_settings, write_settings
from siglip_jax.processing.text.vocabulary import Vocabulary

UNBOUNDED = 10**20  # the reference writes 1e30 for "no limit"
_FILL = {"attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}  # of padding


class TokenizerBase(Vocabulary):
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
    do_lower_case: bool
    padding_side: str
    truncation_side: str
    model_input_names: list[str]
    split_special_tokens: bool

    def __init__(
        self,
        *,
        special_tokens: Mapping[str, Token | None],
        additional_special_tokens: Iterable[Token] | None,
        model_max_length: Any,
        settings: Mapping[str, Any],
    ) -> None:
        """Stores the settings; the subclass reads the vocabulary, then calls `_add_missing`.

        Args:
          special_tokens: default token of each name, such as "eos_token"; `settings` takes precedence.
          additional_special_tokens: special tokens without a name; None: none.
          model_max_length: length in tokens of the longest text that the model accepts; None: no limit.
          settings: values of `padding_side` and the other keys of `_defaults`, of named special tokens, and of
            `extra_special_tokens`, another name of `additional_special_tokens`.

        Raises:
          ValueError: for an unknown setting or an invalid value.
        """
        refuse_unknown(settings, [*self._defaults, *NAMED, "extra_special_tokens"], type(self).__name__)
        check_fields(type(self).__name__, settings, {name: SETTINGS[name] for name in self._defaults})
        self.model_max_length = model_max_length
        for name, default in self._defaults.items():
            setattr(self, name, default if settings.get(name) is None else settings[name])
        self.model_input_names = list(self.model_input_names)

        given = {**special_tokens, **{name: value for name, value in settings.items() if name in NAMED}}
        self._named = {n: AddedToken.of(given[n], name=n).content for n in NAMED if given.get(n) is not None}
        for name in ("eos_token", "unk_token", "pad_token"):
            if name not in self._named:
                raise ValueError(f"{name} must be a token, got None")
        extra = additional_special_tokens or settings.get("extra_special_tokens") or ()
        extra = extra.values() if isinstance(extra, Mapping) else extra
        self._extra = [AddedToken.of(token, name="additional_special_tokens").content for token in extra]
        self._unknown_settings: dict[str, Any] = {}
        self._has_warned = False

    def __repr__(self) -> str:
        """Returns the class with what distinguishes one tokenizer from another."""
        names = ("vocab_file", "vocab_size", "model_max_length", "padding_side", "do_lower_case", "special_tokens_map")
        facts = {name.removesuffix("_map"): getattr(self, name) for name in names}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in facts.items())})"

    def _add_missing(self) -> None:
        """Adds the special tokens that are not among the added tokens yet."""
        known = self.added_tokens_encoder
        missing = [AddedToken(token) for token in self.all_special_tokens if token not in known]
        if missing:
            self._add(missing)
        self._refresh()

    @property
    def model_max_length(self) -> int:
        """Length in tokens of the longest text that the model accepts; 10**30 stands for no limit."""
        return self._limit

    @model_max_length.setter
    def model_max_length(self, value: Any) -> None:
        limit = UNBOUNDED + 1 if value is None else value
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit >= 1:
            raise ValueError(f"model_max_length must be a number of tokens, at least 1, or None, got {limit!r}")
        self._limit = int(1e30) if limit > UNBOUNDED else int(limit)

    @abc.abstractmethod
    def encode_texts(self, texts: Sequence[str], split_special_tokens: bool = False) -> list[Ids]:
        """Returns the ids of each text, without the final eos; all texts are encoded together, which is faster.

        Args:
          texts: texts to encode.
          split_special_tokens: whether the string of a special token is split as any other text.
        """

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
        verbose: bool | None = None,
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
          pad_to_multiple_of: number of which the padded length becomes a multiple; `max_length` must be one where texts
            are truncated too. None: 1.
          return_tensors: kind of the result: "np" for numpy arrays, "jax" for JAX arrays, None for lists.
          return_attention_mask: whether `attention_mask` is returned, 1 for tokens and 0 for padding; None: if it is
            in `model_input_names`.
          return_special_tokens_mask: whether `special_tokens_mask` is returned, 1 for eos and padding and 0 for
            other tokens.
          return_token_type_ids: whether `token_type_ids` are returned, which are all 0; None: if they are in
            `model_input_names`.
          split_special_tokens: whether the string of a special token is split as any other text; None: as set for the
            tokenizer.
          verbose: whether a warning says, once per tokenizer, that a text has more tokens than the model accepts: True,
            if it is cut or is too long; None: only if it is too long; False: no.

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
        check_choice("truncation_side", self.truncation_side, ("right", "left"))
        padding, truncation = strategies(padding, truncation, max_length)
        if max_length is None and (padding == "max_length" or truncation != "do_not_truncate"):
            max_length = self._known_limit()
        cut_and_padded = truncation != "do_not_truncate" and padding != "do_not_pad"
        if cut_and_padded and pad_to_multiple_of and max_length and max_length % pad_to_multiple_of:
            raise ValueError(
                f"max_length must be a multiple of pad_to_multiple_of={pad_to_multiple_of} where texts are cut and"
                f" padded, got {max_length}"
            )
        split = bool(self.split_special_tokens if split_special_tokens is None else split_special_tokens)
        fill = self._needed("pad_token", "to pad texts") if padding != "do_not_pad" else 0

        single, texts, pairs = texts_and_pairs(text, text_pair)
        firsts, seconds = self._encoded(texts, split), None if pairs is None else self._encoded(pairs, split)
        ends = add_special_tokens * (1 if seconds is None else 2)
        if verbose is not False and not self._has_warned:
            self._warn_of_length(firsts, seconds, ends, max_length, truncation != "do_not_truncate" and verbose is True)
        if max_length:
            firsts, seconds = truncate_all(firsts, seconds, max_length - ends, truncation, self.truncation_side)
        parts = [firsts] if seconds is None else [firsts, seconds]
        if add_special_tokens:
            end = self._needed("eos_token", "to end a text")
            for ids in itertools.chain(*parts):
                if self._lacks_end(ids):
                    ids.append(end)
        rows = firsts if seconds is None else [a + b for a, b in zip(firsts, seconds, strict=True)]
        special: list[Ids] = []
        if return_special_tokens_mask:
            ones = [[[0] * (len(ids) - 1) + [1] if add_special_tokens else [0] * len(ids) for ids in p] for p in parts]
            special = [list(itertools.chain(*row)) for row in zip(*ones, strict=True)]
        width = padded_width(padding, max_length, pad_to_multiple_of, rows)
        wants_types, wants_mask = (
            name in self.model_input_names if given is None else given
            for name, given in (("token_type_ids", return_token_type_ids), ("attention_mask", return_attention_mask))
        )
        batch = Batch()
        if return_tensors:
            batch["input_ids"], there = stacked(rows, width, fill, side)
            if wants_types:
                batch["token_type_ids"] = np.zeros(there.shape, np.int32)
            if return_special_tokens_mask:
                batch["special_tokens_mask"], _ = stacked(special, width, 1, side)
            if wants_mask:
                batch["attention_mask"] = there.astype(np.int32)
            return batch if return_tensors == "np" else Batch({k: jnp.asarray(v) for k, v in batch.items()})
        mask = attention(rows, width, side) if wants_mask else []
        pad(rows, width or 0, fill, side)
        pad(special, width or 0, 1, side)
        batch["input_ids"] = rows
        if wants_types:
            batch["token_type_ids"] = [[0] * len(row) for row in rows]
        if return_special_tokens_mask:
            batch["special_tokens_mask"] = special
        if wants_mask:
            batch["attention_mask"] = mask
        return Batch({name: values[0] for name, values in batch.items()}) if single else batch

    def _known_limit(self) -> int:
        """Returns `model_max_length`; raises a ValueError if there is no limit."""
        if self.model_max_length > UNBOUNDED:
            raise ValueError(
                "max_length must be given for a tokenizer without model_max_length, got None; pass max_length, for"
                " example 64"
            )
        return self.model_max_length

    def _warn_of_length(
        self, firsts: list[Ids], seconds: list[Ids] | None, ends: int, max_length: int | None, cut: bool
    ) -> None:
        """Warns if a text will be cut, or if there is no `max_length` and a text is longer than the model accepts."""
        pairs = zip(firsts, itertools.repeat(()) if seconds is None else seconds, strict=False)
        longest = ends + max(len(first) + len(second) for first, second in pairs)
        most = self.model_max_length if max_length is None else max_length
        if longest <= most or not (cut or max_length is None):
            return
        self._has_warned = True
        rest = "is cut to that; pass truncation=True where this is meant" if cut else "is not cut; pass truncation=True"
        limit = f"the {most} of max_length" if max_length else f"the {most} that the model accepts"
        warnings.warn(f"text has {longest} tokens, more than {limit}, and {rest}", stacklevel=4)

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

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> Batch:
        """Returns texts that are ids already, padded to one length; a data loader calls it to make batches.

        Args:
          encoded_inputs: result of a call without padding, for one text or several, or a list of results for one text
            each. Values may be lists or arrays. Entries other than `input_ids` and the masks are kept as they are.
          padding: True or "longest" pads to the longest text, "max_length" to `max_length`, False not at all.
          max_length: length in tokens for `padding="max_length"`; None: `model_max_length`.
          pad_to_multiple_of: number of which the padded length becomes a multiple; None: 1.
          padding_side: side that padding is added to, "right" or "left"; None: that of the tokenizer.
          return_attention_mask: whether `attention_mask` is added, 1 for tokens and 0 for padding; None: if it is in
            `model_input_names`.
          return_tensors: kind of the result: "np" for numpy arrays, "jax" for JAX arrays; None: that of the
            `input_ids`, arrays or lists.

        Returns:
          A `Batch` of the same entries.

        Raises:
          ValueError: if there are no `input_ids`, for an invalid option, and for arrays of rows that differ in length.

        Example:
          >>> from siglip_jax.assets import BUNDLED_MODEL
          >>> from siglip_jax.processing import SiglipTokenizer
          >>> tokenizer = SiglipTokenizer.from_pretrained(BUNDLED_MODEL)
          >>> tokenizer.pad([tokenizer("a horse"), tokenizer("a")], return_tensors="np").input_ids.tolist()
          [[5, 689, 1], [5, 1, 1]]
        """
        check_choice("return_tensors", return_tensors, (None, "np", "jax"))
        side = padding_side or self.padding_side
        check_choice("padding_side", side, ("right", "left"))
        padding, _ = strategies(padding, False, max_length)
        listed = not isinstance(encoded_inputs, Mapping)
        if listed and not (
            isinstance(encoded_inputs, (list, tuple))
            and encoded_inputs
            and all(isinstance(item, Mapping) for item in encoded_inputs)
        ):
            raise ValueError(f"encoded_inputs must be a mapping or a list of mappings, got {encoded_inputs!r}")
        names = list(encoded_inputs[0] if listed else encoded_inputs)
        if "input_ids" not in names:
            raise ValueError(f"encoded_inputs must have input_ids, got {names}")
        found = {n: [item[n] for item in encoded_inputs] if listed else encoded_inputs[n] for n in names}
        ids = found["input_ids"]
        first = ids[0] if isinstance(ids, (list, tuple)) and len(ids) else ids
        if return_tensors is None and hasattr(first, "__array__") and not isinstance(first, np.generic):
            return_tensors = "jax" if isinstance(first, jax.Array) else "np"

        columns = {name: as_lists(values) for name, values in found.items()}
        single = not (columns["input_ids"] and isinstance(columns["input_ids"][0], list))
        if single:
            columns = {name: [values] for name, values in columns.items()}
        rows: list[Ids] = columns["input_ids"]
        if padding == "max_length" and max_length is None:
            max_length = self._known_limit()
        width = padded_width(padding, max_length, pad_to_multiple_of, rows)
        wants_mask = (
            "attention_mask" in self.model_input_names if return_attention_mask is None else return_attention_mask
        )
        if wants_mask:
            columns.setdefault("attention_mask", [[1] * len(row) for row in rows])
        fill = {"input_ids": self._needed("pad_token", "to pad texts") if width else 0, **_FILL}
        for name in fill.keys() & columns.keys():
            pad(columns[name], width or 0, fill[name], side)
        if return_tensors is None:
            return Batch({name: values[0] for name, values in columns.items()} if single else columns)
        lengths = sorted({len(row) for row in rows})
        if len(lengths) > 1:
            raise ValueError(f"texts must have one length to be stacked, got {lengths} tokens; pass padding=True")
        whole = columns if listed or not single else {name: values[0] for name, values in columns.items()}
        arrays = {n: np.asarray(values, np.int32 if n in fill else None) for n, values in whole.items()}
        return Batch(arrays if return_tensors == "np" else {n: jnp.asarray(a) for n, a in arrays.items()})

    @classmethod
    def setting_names(cls) -> list[str]:
        """Returns the names of the constructor's keyword arguments, which are also keys of a file of settings."""
        return [*cls._defaults, *NAMED, *cls._arguments, "extra_special_tokens"]

    @classmethod
    def _settings_in(cls, directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the constructor's arguments in the files of a directory, and the other settings in them."""
        found, names = read_settings(directory, cls.vocabulary_file), cls.setting_names()
        known = {k: v for k, v in found.items() if k in names and (v is not None or k == "model_max_length")}
        return known, {k: v for k, v in found.items() if k not in names}

    @abc.abstractmethod
    def _vocabulary_bytes(self) -> bytes:
        """Returns the contents of the vocabulary file."""

    @abc.abstractmethod
    def _settings_of_kind(self) -> dict[str, Any]:
        """Returns the settings in `tokenizer_config.json` that identify the kind of tokenizer."""

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
        directory, name = output_path(save_directory, "save_directory"), self.vocabulary_file
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
        directory = output_path(save_directory, "save_directory")
        directory.mkdir(parents=True, exist_ok=True)
        self.save_vocabulary(directory)
        settings = {}
        for name, default in self._defaults.items():
            if getattr(self, name) != (list(default) if isinstance(default, tuple) else default):
                settings[name] = getattr(self, name)
        settings |= self.special_tokens_map | {
            "additional_special_tokens": self.additional_special_tokens,
            "model_max_length": model_max_length or self.model_max_length,
        }
        settings |= self._settings_of_kind()
        write_settings(directory, self._unknown_settings | settings, self.added_tokens_decoder)
