"""Gemma tokenizer of SigLIP 2; mirrors `transformers.Siglip2Tokenizer`, which lower-cases texts.

A text is lower-cased, keeps its punctuation and blanks, and becomes pieces of a byte-pair encoding, with bytes where no
piece exists, and a final `<eos>`. Strings of special tokens are matched before that: `<eos>` is one, `<EOS>` is text.
SigLIP 2 was trained on such texts; texts with capitals cost points of retrieval and zero-shot accuracy.

Differences from the reference: texts are lower-cased for the fixed-resolution checkpoints too, which the reference
reads as `GemmaTokenizer` without lower-casing; normaliser, pre-tokenizer and decoder are those of the file; `<eos>` is
appended and no `<bos>` is prepended, regardless of the file; padding is added on the right unless
`tokenizer_config.json` sets another side; if that file has no maximum length, it is the model's text length; an id
outside the vocabulary is an error.
"""

import contextlib
import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from siglip_jax import _hub as hub
from siglip_jax._files import user_cache
from siglip_jax._optional import import_optional
from siglip_jax.processing.text import _tokenizer_trial
from siglip_jax.processing.text._sequences import Ids
from siglip_jax.processing.text.base import UNBOUNDED, TokenizerBase
from siglip_jax.processing.text.canonical import replace_surrogates
from siglip_jax.processing.text.settings import (
    DEFAULT_LENGTH,
    SENTENCEPIECE,
    TOKENIZERS,
    AddedToken,
    Token,
    text_length,
)

_IDS = _tokenizer_trial.MOST_IDS  # ids are int32
_PATIENCE = 120  # seconds that the library may take for a file that it has not seen before


class Siglip2Tokenizer(TokenizerBase):
    """Converts texts to token ids and back with a Gemma vocabulary, `tokenizer.json`.

    Needs the extra `siglip2`. The first use of a `tokenizer.json` is tried in a process of its own, because the
    library `tokenizers` may not survive damaged contents.

    Attributes:
      do_lower_case: True, because SigLIP 2 was trained on lower-cased texts.
      vocabulary_file: name of the vocabulary file in a directory.
      vocab_file: path of the vocabulary file.
      vocab_size: number of pieces of the vocabulary, without added tokens.
      model_max_length: length in tokens of the longest text that the model accepts; 10**30 stands for no limit.
      model_input_names: names of the lists or arrays that a call returns by default.
      padding_side: side that padding is added to, "right" or "left".
      truncation_side: side that tokens are removed from, "right" or "left".
      clean_up_tokenization_spaces: whether `decode` removes blanks before punctuation by default.
      eos_token: token that ends a text.
      eos_token_id: id of the end token.
      unk_token: token that replaces unknown pieces.
      unk_token_id: id of the unknown token.
      pad_token: token of padding.
      pad_token_id: id of the padding token.
      special_tokens_map: special tokens that have a name, by that name, such as "eos_token".
      additional_special_tokens: special tokens without a name.
      all_special_tokens: all special tokens, which carry no text.
      all_special_ids: their ids, in the same order.
      added_tokens_decoder: tokens that are matched in a text before it is split into pieces, by id.
      added_tokens_encoder: ids of those tokens, by content.

    Example:
      >>> import tempfile, tokenizers
      >>> vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2, "c": 3, "a": 4, "t": 5, "at": 6, "cat": 7}
      >>> model = tokenizers.models.BPE(vocab=vocabulary, merges=[("a", "t"), ("c", "at")], unk_token="<unk>")
      >>> with tempfile.NamedTemporaryFile(suffix=".json") as file:
      ...     tokenizers.Tokenizer(model).save(file.name)
      ...     tokenizer = Siglip2Tokenizer(file.name)
      >>> tokenizer("CAT").input_ids, tokenizer.tokenize("CATA")
      ([7, 1], ['cat', 'a'])
    """

    vocabulary_file: ClassVar[str] = TOKENIZERS
    do_lower_case: bool = True
    _arguments: ClassVar[tuple[str, ...]] = ("additional_special_tokens", "model_max_length", "added_tokens_decoder")
    _cleans_up: ClassVar[bool] = False  # as in the reference, because the pieces contain their blanks

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
          tokenizer_file: path of a file of the library `tokenizers` with a byte-pair encoding.
          eos_token: token that ends a text. Special tokens that the vocabulary lacks get the next free ids.
          unk_token: token that replaces unknown pieces.
          pad_token: token of padding.
          additional_special_tokens: special tokens without a name. None: none.
          model_max_length: length in tokens of the longest text that the model accepts; None: no limit.
          do_lower_case: must be True.
          added_tokens_decoder: further tokens, by id, that are matched in a text before it is split; ids of tokens in
            the vocabulary are those of the vocabulary. None: none.
          **settings: `padding_side`, `truncation_side`, `model_input_names`, `clean_up_tokenization_spaces` (which
            has no effect, as in the reference), `split_special_tokens`, and further named special tokens
            (`bos_token`, `sep_token`, `cls_token`, `mask_token`).

        Raises:
          FileNotFoundError: if the file does not exist.
          ValueError: if the file is not such a tokenizer, a setting is unknown or invalid, or the extra `siglip2` is
            missing.
        """
        _check_lower_case(do_lower_case)
        self.vocab_file = os.fspath(tokenizer_file)
        self._tokenizer = _lower_casing(_load(self.vocab_file))
        self._largest_piece = max(self.get_vocab().values(), default=0)
        if self._largest_piece >= _IDS:
            raise ValueError(f"{self.vocab_file}: ids must be below {_IDS}, got {self._largest_piece}")
        more = {f"{name}_token": f"<{name}>" for name in ("bos", "mask") if self._has(f"<{name}>")}
        super().__init__(
            special_tokens={"eos_token": eos_token, "unk_token": unk_token, "pad_token": pad_token, **more},
            additional_special_tokens=additional_special_tokens,
            model_max_length=model_max_length,
            settings=settings,
        )
        self._add([token for _, token in sorted((added_tokens_decoder or {}).items())])
        self._add_missing()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "do_lower_case":
            _check_lower_case(value)
        super().__setattr__(name, value)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        **settings: Any,
    ) -> "Siglip2Tokenizer":
        """Returns the tokenizer of a directory, Hub repository or `tokenizer.json`.

        Args:
          name_or_path: path of a directory or `tokenizer.json`, or a Hub name such as
            "google/siglip2-base-patch16-224".
          revision: branch, tag or commit of a Hub repository; None: its `main`. A local path has none.
          local_files_only: whether to use only files in the local Hub cache and make no request.
          **settings: arguments of the constructor, which take precedence over the files.

        Returns:
          A `Siglip2Tokenizer`.

        Raises:
          FileNotFoundError: if the path, the repository or its `tokenizer.json` does not exist.
          ValueError: if a file holds another kind of tokenizer or has invalid contents, or a setting is unknown or
            invalid.
        """
        path = hub.resolve(name_or_path, revision=revision, local_files_only=local_files_only)
        if path.is_file():
            return cls(path, **settings)
        if not (path / TOKENIZERS).is_file() and (path / SENTENCEPIECE).is_file():
            raise FileNotFoundError(f"{path}: no {TOKENIZERS} here, but a {SENTENCEPIECE}; use SiglipTokenizer")
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
        # Version 5 builds a GemmaTokenizer without the file's normaliser, and version 4 has no Siglip2Tokenizer; both
        # read this class from tokenizer.json unchanged. Without a padding_side they would pad on the left.
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True, "padding_side": self.padding_side}
        return kind | {"add_bos_token": False, "add_eos_token": True}

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Tokens that are matched in a text before it is split into pieces, by id; `add_tokens` adds to them."""
        found, fields = self._tokenizer.get_added_tokens_decoder(), AddedToken._fields
        return {i: AddedToken(*(getattr(found[i], name) for name in fields)) for i in sorted(found)}

    def _add(self, tokens: Sequence[AddedToken]) -> int:
        """Adds tokens to those matched in a text; returns the number of new ids."""
        before = len(self)
        with _panics_named(self.vocab_file):
            self._tokenizer.add_tokens([_library().AddedToken(**token._asdict()) for token in tokens])
        return len(self) - before

    def _refresh(self) -> None:
        """Recomputes what follows from the special and the added tokens."""
        self.__dict__.pop("_splitting", None)
        if self.eos_token is not None:
            _end_with(self._tokenizer, self.eos_token, self.eos_token_id)

    @property
    def vocab_size(self) -> int:
        """Number of pieces of the vocabulary, without added tokens."""
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    @property
    def largest_id(self) -> int:
        """Largest id that a text can have."""
        return max([self._largest_piece, *self._tokenizer.get_added_tokens_decoder()])

    def __len__(self) -> int:
        """Returns the number of pieces and added tokens."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        """Returns the id of every piece and added token."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def _has(self, token: str) -> bool:
        return self._tokenizer.token_to_id(token) is not None

    def _token(self, index: int) -> str:
        token = self._tokenizer.id_to_token(index) if 0 <= index < _IDS else None
        if token is None:
            raise ValueError(
                f"{self.vocab_file}: token id must be one of the {len(self)} ids of the vocabulary, got {index}"
            )
        return token

    def _id(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        return self._needed("unk_token", f"to stand for {token!r}") if index is None else index

    def _lacks_end(self, ids: Ids) -> bool:
        return True

    @functools.cached_property
    def _splitting(self) -> Any:
        """The same tokenizer with special tokens split as text; switching the shared one is not thread-safe."""
        tokenizer = _library().Tokenizer.from_str(self._tokenizer.to_str())
        tokenizer.encode_special_tokens = True
        return tokenizer

    def tokenize(self, text: str, *, split_special_tokens: bool = False) -> list[str]:
        """Returns the pieces of one text, without the final `<eos>`.

        Args:
          text: text to split.
          split_special_tokens: whether the string of a special token is split as any other text.
        """
        engine = self._splitting if split_special_tokens else self._tokenizer
        with _panics_named(self.vocab_file):
            return engine.encode(replace_surrogates(text), add_special_tokens=False).tokens

    def encode_texts(self, texts: Sequence[str], split_special_tokens: bool = False) -> list[Ids]:
        """Returns the ids of the pieces of each text, without the final `<eos>`.

        The ids are those of the pieces that `tokenize` returns; all texts are encoded together, which is faster.

        Args:
          texts: texts to encode.
          split_special_tokens: whether the string of a special token is split as any other text.

        Returns:
          A list of ids for each text.
        """
        engine = self._splitting if split_special_tokens else self._tokenizer
        with _panics_named(self.vocab_file):
            encodings = engine.encode_batch_fast([*map(replace_surrogates, texts)], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Returns the text of some tokens, in which special tokens appear as their strings.

        Args:
          tokens: pieces and special tokens, as `tokenize` or `convert_ids_to_tokens` returns them.
        """
        decoder = self._tokenizer.decoder
        with _panics_named(self.vocab_file):
            return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))

    def _text(self, row: Any, skip_special_tokens: bool) -> str:
        """Returns the text of one row; it skips all tokens that are special in the file, not only the named ones."""
        ids = np.asarray(row, np.int64).ravel().tolist()
        self.convert_ids_to_tokens(ids)  # raises an error for ids outside the vocabulary
        with _panics_named(self.vocab_file):
            return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def _library() -> Any:
    """Returns the library `tokenizers`, which the extra `siglip2` installs."""
    return import_optional("tokenizers", "a tokenizer.json", "siglip2")


def _refused(file: str, cause: str) -> ValueError:
    """Returns the error for a file that the library does not accept."""
    if file in cause:
        return ValueError(cause)
    cause = " ".join(cause.split())[:200]
    return ValueError(f"{file}: file must be a tokenizer of the library tokenizers, got other contents ({cause})")


@contextlib.contextmanager
def _panics_named(file: str) -> Iterator[None]:
    """Turns a panic of the library's Rust code, which is no `Exception`, into a `ValueError` that names the file."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise _refused(file, str(error)) from None


def _try_in_a_child(file: str, data: bytes) -> None:
    """Uses a file that this user has not used before in a process of its own.

    Damaged contents can end a process, or occupy it without end, inside the library. What passed is remembered by its
    SHA-256. Where no process can be started, the file is used untried.

    Raises:
      ValueError: if the library refuses the file, or does not survive it.
    """
    seen = user_cache() / "tokenizers" / hashlib.sha256(data).hexdigest()
    if seen.exists():
        return
    command = [sys.executable, "-P", str(Path(_tokenizer_trial.__file__)), os.path.abspath(file)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        raise _refused(file, f"the library did not read it within {_PATIENCE} s") from None
    except OSError:
        return
    if done.returncode == _tokenizer_trial.REFUSED:
        raise _refused(file, done.stdout.decode(errors="replace"))
    if done.returncode < 0:
        raise _refused(file, f"the library does not survive it, signal {-done.returncode}")
    if done.returncode == 0:
        with contextlib.suppress(OSError):
            seen.parent.mkdir(parents=True, exist_ok=True)
            seen.touch()


def _check_lower_case(value: object) -> None:
    if value is not True:
        raise ValueError(f"do_lower_case must be True, as SigLIP 2 was trained, got {value!r}")


def _load(file: str) -> Any:
    """Returns the tokenizer in a file, without its padding and truncation."""
    library = _library()
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such file; a tokenizer needs its {TOKENIZERS}")
    data = Path(file).read_bytes()
    _try_in_a_child(file, data)
    try:
        with _panics_named(file):
            tokenizer = library.Tokenizer.from_buffer(data)
    except Exception as error:
        raise _refused(file, str(error)) from None
    model = type(tokenizer.model).__name__
    if model != "BPE":
        raise ValueError(f"{file}: model must be a byte-pair encoding (BPE), as Gemma's, got {model}")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _lower_casing(tokenizer: Any) -> Any:
    """Prepends `Lowercase` to the normaliser unless it contains one; added tokens with `normalized` use it too."""
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
    """Sets the post-processor of the file to append the eos, for readers of the file other than this class."""
    processor = _library().processors.TemplateProcessing
    single, second = ["$A:0", f"{eos}:0"], ["$B:1", f"{eos}:1"]
    tokenizer.post_processor = processor(single=single, pair=single + second, special_tokens=[(eos, index)])
