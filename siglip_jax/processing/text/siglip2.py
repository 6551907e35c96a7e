"""Gemma tokenizer of SigLIP 2; mirrors `transformers.Siglip2Tokenizer`, which lower-cases.

A text is lower-cased, keeps its punctuation and its blanks, and becomes pieces of a byte-pair encoding, bytes where
there is no piece, and a final `<eos>`. Strings of special tokens are cut out before that: `<eos>` is one, `<EOS>` is
text. SigLIP 2 was trained so, and texts that keep their capitals cost points of retrieval and of zero-shot accuracy.

It differs from the reference in these: the fixed-resolution checkpoints, which the reference reads as `GemmaTokenizer`
and does not lower-case, are lower-cased too; normaliser, pre-tokenizer and decoder are those of the file; the `<eos>`
is appended and no `<bos>` put before it whatever the file says; padding goes to the right unless
`tokenizer_config.json` says otherwise; where that names no maximum length it is the model's text length; an id outside
the vocabulary is an error.
"""

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from siglip_jax import _hub as hub
from siglip_jax.processing.text._sequences import Ids
from siglip_jax.processing.text.base import UNBOUNDED, TokenizerBase
from siglip_jax.processing.text.settings import (
    DEFAULT_LENGTH,
    SENTENCEPIECE,
    TOKENIZERS,
    AddedToken,
    Token,
    text_length,
)

_IDS = 2**31  # ids are int32


class Siglip2Tokenizer(TokenizerBase):
    """Texts to token ids and back, by a `tokenizer.json`; the attributes are those of `TokenizerBase`."""

    vocabulary_file: ClassVar[str] = TOKENIZERS
    do_lower_case: ClassVar[bool] = True
    _arguments: ClassVar[tuple[str, ...]] = ("additional_special_tokens", "model_max_length", "added_tokens_decoder")
    _cleans_up: ClassVar[bool] = False  # nor does the reference where the pieces hold their blanks

    def __init__(
        self,
        tokenizer_file: str | os.PathLike[str],
        *,
        eos_token: Token = "<eos>",
        unk_token: Token = "<unk>",
        pad_token: Token = "<pad>",
        additional_special_tokens: Sequence[Token] | None = None,
        model_max_length: Any = DEFAULT_LENGTH,
        do_lower_case: bool = True,
        added_tokens_decoder: dict[int, AddedToken] | None = None,
        **settings: Any,
    ) -> None:
        """Reads a `tokenizer.json`.

        Args:
          tokenizer_file: of the library `tokenizers`, with a byte-pair encoding.
          additional_special_tokens: those that the vocabulary lacks get the next free ids.
          model_max_length: in tokens; None for no limit.
          do_lower_case: True; there is no other way.
          added_tokens_decoder: further tokens that are cut out of a text; the vocabulary decides their ids.
          **settings: `padding_side`, `truncation_side`, `model_input_names`, `clean_up_tokenization_spaces` (which
            changes nothing, as in the reference), `split_special_tokens`, and more special tokens (`bos_token`, ...).

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if it is not a tokenizer of that kind, lacks a special token, for an unknown setting, and
            without the extra `siglip2`.
        """
        if do_lower_case is not True:
            raise ValueError(f"do_lower_case: expected True, as SigLIP 2 was trained, found {do_lower_case!r}")
        self.vocab_file = os.fspath(tokenizer_file)
        self._tokenizer = _lower_casing(_load(self.vocab_file))
        more = {f"{name}_token": f"<{name}>" for name in ("bos", "mask") if self._has(f"<{name}>")}
        super().__init__(
            special_tokens={"eos_token": eos_token, "unk_token": unk_token, "pad_token": pad_token, **more},
            additional_special_tokens=additional_special_tokens,
            model_max_length=model_max_length,
            settings=settings,
        )
        for name in ("eos_token", "unk_token", "pad_token"):
            if not self._has(token := self.special_tokens_map[name]):
                raise ValueError(
                    f"{self.vocab_file}: the {name} {token!r} is not in its vocabulary; name the right one"
                )
        self._add_tokens([token for _, token in sorted((added_tokens_decoder or {}).items())])
        self._number_special_tokens()
        _end_with(self._tokenizer, self.eos_token, self.eos_token_id)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        **settings: Any,
    ) -> "Siglip2Tokenizer":
        """Reads a directory or Hub repository with `tokenizer.json`, or that file alone.

        Args:
          **settings: arguments of the constructor; they take precedence over the files.

        Raises:
          FileNotFoundError: if it or its vocabulary is missing.
          ValueError: if it holds another kind of tokenizer or a broken file.
        """
        path = hub.resolve(name_or_path, revision=revision, local_files_only=local_files_only)
        if path.is_file():
            return cls(path, **settings)
        if not (path / TOKENIZERS).is_file() and (path / SENTENCEPIECE).is_file():
            raise FileNotFoundError(f"{path}: no {TOKENIZERS} here, but a {SENTENCEPIECE}; SiglipTokenizer reads that")
        known, unknown = cls._settings_in(path)
        length = known.get("model_max_length")
        if length is None or isinstance(length, (int, float)) and length > UNBOUNDED:
            known["model_max_length"] = text_length(path) or DEFAULT_LENGTH
        tokenizer = cls(path / TOKENIZERS, **known | settings)
        tokenizer._unknown_settings = unknown
        return tokenizer

    def _vocabulary_bytes(self) -> bytes:
        return self._tokenizer.to_str(pretty=True).encode()

    def _settings_of_kind(self) -> dict[str, Any]:
        # Version 5 builds a GemmaTokenizer without the file's normaliser, version 4 knows no Siglip2Tokenizer; both
        # read this class from tokenizer.json as it is. Their padding goes to the left if it is not named.
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True, "padding_side": self.padding_side}
        return kind | {"add_bos_token": False, "add_eos_token": True}

    def _add_tokens(self, tokens: Sequence[AddedToken]) -> None:
        """Has the tokens cut out of a text, and the special ones that are not yet."""
        make = _library().AddedToken
        self._tokenizer.add_tokens([make(**token._asdict()) for token in tokens])
        known = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        missing = [make(**AddedToken(token)._asdict()) for token in self.all_special_tokens if token not in known]
        self._tokenizer.add_tokens(missing)
        fields = AddedToken._fields
        found = self._tokenizer.get_added_tokens_decoder()
        self.added_tokens_decoder = {i: AddedToken(*(getattr(found[i], name) for name in fields)) for i in found}
        self.added_tokens_encoder = {token.content: i for i, token in self.added_tokens_decoder.items()}

    @property
    def vocab_size(self) -> int:
        """Number of pieces, without tokens that were added to them."""
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        """Returns the id of every piece and added token."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def _has(self, token: str) -> bool:
        return self._tokenizer.token_to_id(token) is not None

    def _token(self, index: int) -> str:
        token = self._tokenizer.id_to_token(index) if 0 <= index < _IDS else None
        if token is None:
            raise ValueError(f"token id {index}: expected one of the {len(self)} ids of {self.vocab_file}")
        return token

    def _id(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        return self.unk_token_id if index is None else index

    def _lacks_end(self, ids: Ids) -> bool:
        return True

    @functools.cached_property
    def _splitting(self) -> Any:
        """The same tokenizer, to which special tokens are text; a switch on the one would not be safe for threads."""
        tokenizer = _library().Tokenizer.from_str(self._tokenizer.to_str())
        tokenizer.encode_special_tokens = True
        return tokenizer

    def tokenize(self, text: str, *, split_special_tokens: bool = False) -> list[str]:
        """Returns the pieces of one text, without the final `<eos>`.

        Args:
          split_special_tokens: treat the string of a special token as any other text.
        """
        engine = self._splitting if split_special_tokens else self._tokenizer
        return engine.encode(_unicode(text), add_special_tokens=False).tokens

    def encode_texts(self, texts: Sequence[str], split_special_tokens: bool = False) -> list[Ids]:
        """Returns the ids of the pieces of each text, as `tokenize` would give them, all texts at once."""
        engine = self._splitting if split_special_tokens else self._tokenizer
        encodings = engine.encode_batch_fast([_unicode(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Returns the text of some tokens; special tokens stand in it as they are."""
        decoder = self._tokenizer.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))

    def _text(self, row: Any, skip_special_tokens: bool) -> str:
        """Differs from the base in what it skips: every added token the file calls special, not the named ones only."""
        ids = np.asarray(row, np.int64).ravel().tolist()
        self.convert_ids_to_tokens(ids)  # complains of ids that are none
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ValueError(
            "a tokenizer.json is read by the library tokenizers: pip install 'siglip_jax[siglip2]'"
        ) from None
    return tokenizers


def _load(file: str) -> Any:
    """Returns the tokenizer in a file, with no padding and no truncation of its own."""
    library = _library()
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such file; a tokenizer needs its {TOKENIZERS}")
    try:
        tokenizer = library.Tokenizer.from_buffer(Path(file).read_bytes())
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # as it is outside Python
            raise
        cause = " ".join(str(error).split())[:200]
        raise ValueError(f"{file}: expected a tokenizer of the library tokenizers, found none ({cause})") from None
    model = type(tokenizer.model).__name__
    if model != "BPE":
        raise ValueError(f"{file}: expected a byte-pair encoding (BPE), as Gemma's, found a {model} model")
    if max(tokenizer.get_vocab().values(), default=0) >= _IDS:
        raise ValueError(f"{file}: expected ids below {_IDS}, found {max(tokenizer.get_vocab().values())}")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _lower_casing(tokenizer: Any) -> Any:
    """Puts `Lowercase` before the normaliser, unless it is in it; added tokens follow."""
    library, normalizer = _library().normalizers, tokenizer.normalizer
    steps = [] if normalizer is None else [json.loads(normalizer.__getstate__())]
    while steps:
        step = steps.pop()
        if step["type"] == "Lowercase":
            return tokenizer
        steps += step.get("normalizers", [])
    tokenizer.normalizer = library.Sequence([library.Lowercase(), *([] if normalizer is None else [normalizer])])
    return tokenizer


def _end_with(tokenizer: Any, eos: str, index: int) -> None:
    """Has the file append the eos as this class does, for those who read it without this class."""
    processor = _library().processors.TemplateProcessing
    single, second = ["$A:0", f"{eos}:0"], ["$B:1", f"{eos}:1"]
    tokenizer.post_processor = processor(single=single, pair=single + second, special_tokens=[(eos, index)])


def _unicode(text: str) -> str:
    """Returns the text; raises a ValueError if it holds half a surrogate pair, which has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text: expected Unicode, found half a surrogate pair at {error.start} of {text!r}") from None
    return text
