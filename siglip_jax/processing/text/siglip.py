"""SentencePiece tokenizer of SigLIP; mirrors `transformers.SiglipTokenizer` with the same ids, encoded in batches.

A text is lower-cased, loses its ASCII punctuation and repeated blanks, and becomes pieces and a final `</s>`. Strings
of special tokens are matched before that. As in the reference, SentencePiece always sees `<unk>` and U+2581 before the
text, so that a text starts with a word, while text after a special token does not.

Differences from the reference: a `</s>` at the end of a text causes no warning, and `special_tokens_mask` has the
length of `input_ids` in that case too; where two added tokens overlap in a text, the leftmost longest one matches,
while the reference misses some of them; a directory of SigLIP 2 returns a `Siglip2Tokenizer`. `base` lists further
differences.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import sentencepiece

from siglip_jax import _hub as hub
from siglip_jax.processing.text._sequences import Ids
from siglip_jax.processing.text.base import TokenizerBase
from siglip_jax.processing.text.canonical import canonicalize, remove_punctuation, replace_surrogates
from siglip_jax.processing.text.settings import DEFAULT_LENGTH, SENTENCEPIECE, AddedToken, Token, vocabulary_in
from siglip_jax.processing.text.siglip2 import Siglip2Tokenizer

WORD_START = "▁"  # U+2581, which stands for a blank in SentencePiece
_THREADS_FROM = 256  # texts; below it, starting SentencePiece's threads costs more time than they save


class SiglipTokenizer(TokenizerBase):
    """Converts texts to token ids and back with a SentencePiece vocabulary, `spiece.model`.

    Attributes:
      sp_model: the SentencePiece processor.
      do_lower_case: whether texts are lower-cased.
      unk_token_length: number of pieces of the string of `unk_token`, which is prepended while encoding.
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
      >>> from siglip_jax.assets import BUNDLED_MODEL
      >>> tokenizer = SiglipTokenizer.from_pretrained(BUNDLED_MODEL)
      >>> tokenizer.tokenize("A photo of a horse!")
      ['▁a', '▁photo', '▁of', '▁a', '▁horse']
      >>> tokenizer(["a horse", "a photo"], padding="max_length", max_length=4, return_tensors="np").input_ids.tolist()
      [[5, 689, 1, 1], [5, 45, 1, 1]]
    """

    vocabulary_file: ClassVar[str] = SENTENCEPIECE
    _defaults: ClassVar[dict[str, Any]] = TokenizerBase._defaults | {"sp_model_kwargs": None}
    _arguments: ClassVar[tuple[str, ...]] = (
        "additional_special_tokens",
        "model_max_length",
        "do_lower_case",
        "added_tokens_decoder",
    )

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        *,
        eos_token: Token = "</s>",
        unk_token: Token = "<unk>",
        pad_token: Token = "</s>",
        additional_special_tokens: Sequence[Token] | None = None,
        model_max_length: Any = DEFAULT_LENGTH,
        do_lower_case: bool = True,
        added_tokens_decoder: dict[int, AddedToken] | None = None,
        **settings: Any,
    ) -> None:
        """Reads a `spiece.model`.

        Args:
          vocab_file: path of the SentencePiece model.
          eos_token: token that ends a text.
          unk_token: token that replaces unknown pieces.
          pad_token: token of padding; the same as `eos_token` in the published checkpoints.
          additional_special_tokens: special tokens without a name; those that the vocabulary lacks get the next free
            ids. None: none.
          model_max_length: length in tokens of the longest text that the model accepts; None: no limit.
          do_lower_case: whether texts are lower-cased.
          added_tokens_decoder: further tokens, by id, that are matched in a text before SentencePiece splits it. As in
            the reference, `lstrip`, `rstrip` and `single_word` have an effect only for tokens in this dictionary. None:
            none.
          **settings: `padding_side`, `truncation_side`, `model_input_names`, `clean_up_tokenization_spaces`,
            `split_special_tokens`, `sp_model_kwargs` (arguments of the SentencePiece processor), and further named
            special tokens (`bos_token`, `sep_token`, `cls_token`, `mask_token`).

        Raises:
          FileNotFoundError: if the file does not exist.
          ValueError: if the file is not a SentencePiece model, or a setting is unknown or invalid.
        """
        super().__init__(
            special_tokens={"eos_token": eos_token, "unk_token": unk_token, "pad_token": pad_token},
            additional_special_tokens=additional_special_tokens,
            model_max_length=model_max_length,
            settings=settings,
        )
        self.vocab_file = os.fspath(vocab_file)
        self.do_lower_case = do_lower_case
        self._bytes = _read(self.vocab_file)
        self.sp_model = _load(self._bytes, self.vocab_file, settings.get("sp_model_kwargs") or {})
        self._decoder = dict(added_tokens_decoder or {})
        self._add_missing()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Tokens that are matched in a text before it is split into pieces, by id; `add_tokens` adds to them."""
        return dict(sorted(self._decoder.items()))

    def _add(self, tokens: Sequence[AddedToken]) -> int:
        """Adds tokens to those matched in a text; returns the number of new ids."""
        count, encoder = 0, self.added_tokens_encoder
        for token in tokens:
            if self.do_lower_case and token.normalized and not token.special:
                token = token._replace(content=token.content.lower())
            index = encoder.get(token.content, self.sp_model.piece_to_id(token.content))
            if token.content not in encoder and self.sp_model.id_to_piece(index) != token.content:
                index = max([self.vocab_size, *(i + 1 for i in self._decoder)])
                count += 1
            if token.special and token.content not in self.all_special_tokens:
                self._extra.append(token.content)
            self._decoder[index] = token
            encoder[token.content] = index
        return count

    def _refresh(self) -> None:
        """Recomputes what follows from the special and the added tokens."""
        encoder = self._encoder = self.added_tokens_encoder
        self._special = set(self.all_special_tokens)
        self.unk_token_length = len(self.sp_model.encode(self.unk_token or ""))
        added = sorted(encoder, key=len, reverse=True)  # longest first: "<a1>" before "<a"
        self._added = re.compile("(" + "|".join(map(re.escape, added)) + ")" if added else "(?!)")
        own = {content: self.sp_model.piece_to_id(content) for content in added}
        # Ids in SentencePiece of the strings of added tokens that have another id here.
        self._doubtful = {own[content] for content, index in encoder.items() if own[content] != index}
        self._joinable = self._special <= encoder.keys()
        self._joinable &= not any(WORD_START in content or "\0" in content for content in added)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        **settings: Any,
    ) -> TokenizerBase:
        """Returns the tokenizer of a directory, Hub repository or vocabulary file of `transformers` 4 or 5.

        The files decide which class it is, not the name of the model: `spiece.model` is read as a `SiglipTokenizer`, a
        `tokenizer.json` alone as a `Siglip2Tokenizer`. All SigLIP 2 checkpoints have the latter, including those whose
        `model_type` is `siglip`.

        Args:
          name_or_path: path of a directory or vocabulary file, or a Hub name such as "google/siglip-base-patch16-224".
          revision: branch, tag or commit of a Hub repository; None: its `main`. A local path has none.
          local_files_only: whether to use only files in the local Hub cache and make no request.
          **settings: arguments of the constructor, which take precedence over the files.

        Returns:
          A `SiglipTokenizer` or a `Siglip2Tokenizer`.

        Raises:
          FileNotFoundError: if the path, the repository or its vocabulary does not exist.
          ValueError: if a file has invalid contents, or a setting is unknown or invalid.
        """
        path = hub.resolve(name_or_path, revision=revision, local_files_only=local_files_only)
        if path.suffix == ".json" if path.is_file() else vocabulary_in(path) == Siglip2Tokenizer.vocabulary_file:
            return Siglip2Tokenizer.from_pretrained(path, **settings)
        if path.is_file():
            return cls(path, **settings)
        known, unknown = cls._settings_in(path)
        tokenizer = cls(path / cls.vocabulary_file, **known | settings)
        tokenizer._unknown_settings = unknown
        return tokenizer

    def _vocabulary_bytes(self) -> bytes:
        return self._bytes

    def _settings_of_kind(self) -> dict[str, Any]:
        return {"do_lower_case": self.do_lower_case, "tokenizer_class": "SiglipTokenizer"}

    def _lacks_end(self, ids: Ids) -> bool:
        return not ids or ids[-1] != self.eos_token_id

    @property
    def vocab_size(self) -> int:
        """Number of pieces of the vocabulary, without added tokens."""
        return self.sp_model.get_piece_size()

    @property
    def largest_id(self) -> int:
        """Largest id that a text can have."""
        return max([self.vocab_size - 1, *self._decoder])

    def get_vocab(self) -> dict[str, int]:
        """Returns the id of every piece and added token."""
        return {self._token(i): i for i in range(self.vocab_size)} | self._encoder

    def _token(self, index: int) -> str:
        if index in self._decoder:
            return self._decoder[index].content
        if not 0 <= index < self.vocab_size:
            raise ValueError(f"{self.vocab_file}: token id must be 0 to {self.vocab_size - 1}, got {index}")
        return self.sp_model.id_to_piece(index)

    def _id(self, token: str) -> int:
        index = self._encoder.get(token)
        return self.sp_model.piece_to_id(token) if index is None else index

    def remove_punctuation(self, text: str) -> str:
        """Returns a text without the 32 ASCII punctuation marks.

        Args:
          text: text to clean.
        """
        return remove_punctuation(text)

    def canonicalize_text(self, text: str, *, keep_punctuation_exact_string: str | None = None) -> str:
        """Returns a text in the canonical form of SigLIP's training texts.

        ASCII punctuation is removed, blanks are reduced to single ones between words, and the text is lower-cased if
        `do_lower_case` is set.

        Args:
          text: text to clean.
          keep_punctuation_exact_string: string whose occurrences are kept unchanged, such as "{}" in a template; None:
            all punctuation is removed.

        Example:
          >>> from siglip_jax.assets import BUNDLED_MODEL
          >>> tokenizer = SiglipTokenizer.from_pretrained(BUNDLED_MODEL)
          >>> tokenizer.canonicalize_text("A photo of {}!", keep_punctuation_exact_string="{}")
          'a photo of {}'
        """
        return canonicalize(text, keep=keep_punctuation_exact_string or "", lower_case=self.do_lower_case)

    def tokenize(self, text: str, *, split_special_tokens: bool = False) -> list[str]:
        """Returns the pieces of one text, without the final `</s>`.

        Args:
          text: text to split.
          split_special_tokens: whether the string of an added token is split as any other text.
        """
        whole = WORD_START + replace_surrogates(text).replace(WORD_START, " ")
        tokens: list[str] = []
        for part in [whole] if split_special_tokens else self._cut(whole):
            kept = not split_special_tokens and (part in self._encoder or part in self._special)
            tokens += [part] if kept else self._pieces(part)
        drop = len(tokens) > 1 and tokens[0] == WORD_START and tokens[1] in self._special
        return tokens[1:] if drop else tokens

    def _pieces(self, chunk: str) -> list[str]:
        """Returns the pieces of a chunk of text without added tokens."""
        pieces = self.sp_model.encode(self._start() + self.canonicalize_text(chunk), out_type=str)
        return pieces[self.unk_token_length :] if len(pieces) >= self.unk_token_length else pieces

    def _start(self) -> str:
        """Returns the token that is put before a text while it is encoded; raises a ValueError if it is unset."""
        self._needed("unk_token", "to encode texts")
        return self.unk_token

    def _cut(self, text: str) -> list[str]:
        """Splits a text at its added tokens and applies their `single_word`, `lstrip` and `rstrip`."""
        parts = [part for part in self._added.split(text) if part]
        for i, part in enumerate(parts):
            if part not in self._encoder:
                continue
            token = self._decoder[self._encoder[part]]
            left, right = (parts[i - 1] if i else ""), (parts[i + 1] if i + 1 < len(parts) else "")
            if token.rstrip and right:
                parts[i + 1] = right.lstrip()
            if token.lstrip and left:
                parts[i - 1] = left.rstrip()
            if token.single_word and left and left[-1] != " ":
                parts[i - 1], parts[i] = parts[i - 1] + part, ""
            elif token.single_word and right and right[0] != " ":
                parts[i + 1], parts[i] = part + parts[i + 1], ""
        return [part for part in parts if part]

    def encode_texts(self, texts: Sequence[str], split_special_tokens: bool = False) -> list[Ids]:
        """Returns the ids of the pieces of each text, without a final `</s>`.

        The ids are those of the pieces that `tokenize` returns; all texts are encoded together, which is faster.

        Args:
          texts: texts to encode.
          split_special_tokens: whether the string of an added token is split as any other text.

        Returns:
          A list of ids for each text.
        """
        texts = [text.replace(WORD_START, " ") for text in map(replace_surrogates, texts)]
        joined = "\0".join(texts)
        if not self._joinable or joined.count("\0") != len(texts) - 1:
            return [self._ids_of(text, split_special_tokens) for text in texts]
        # One pass over all texts, joined by NUL, which has no case and is not a blank and so affects no neighbours.
        lowered = joined.lower() if self.do_lower_case else joined
        cleaned = remove_punctuation(lowered).split("\0")
        start = self._start() + WORD_START
        blank = start + " "
        lines = [
            (blank if line[:1].isspace() and not line.isspace() else start) + " ".join(line.split()) for line in cleaned
        ]
        rows = self.sp_model.encode(lines, num_threads=-1 if len(lines) >= _THREADS_FROM else 1)
        skip = self.unk_token_length
        for row in rows:
            if len(row) >= skip:
                del row[:skip]
        if not split_special_tokens and self._added.search(joined):
            again = {i for i, text in enumerate(texts) if self._added.search(text)}
        else:
            again = set()
        if self._doubtful:
            again |= {i for i, row in enumerate(rows) if not self._doubtful.isdisjoint(row)}
        for i in again:
            rows[i] = self._ids_of(texts[i], split_special_tokens)
        return rows

    def _ids_of(self, text: str, split_special_tokens: bool) -> Ids:
        """Returns the ids of the pieces of one text."""
        return self.convert_tokens_to_ids(self.tokenize(text, split_special_tokens=split_special_tokens))

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Returns the text of some tokens, in which special tokens appear as their strings.

        Args:
          tokens: pieces and special tokens, as `tokenize` or `convert_ids_to_tokens` returns them.
        """
        text, pending, after_special = "", [], False
        for token in tokens:
            if token not in self._special:
                pending.append(token)
                after_special = False
                continue
            text += ("" if after_special else " ") + self.sp_model.decode(pending) + token
            pending, after_special = [], True
        return (text + self.sp_model.decode(pending)).strip()


def _read(file: str) -> bytes:
    """Returns the bytes of a `spiece.model`.

    Raises:
      FileNotFoundError: if the file does not exist.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such file; a tokenizer needs its SentencePiece model")
    return Path(file).read_bytes()


def _load(data: bytes, file: str, options: Mapping[str, Any]) -> sentencepiece.SentencePieceProcessor:
    """Returns the SentencePiece processor of the bytes of a model.

    Raises:
      ValueError: if the bytes are not a SentencePiece model.
    """
    if data:  # an empty model would load and then fail at every use
        try:
            model = sentencepiece.SentencePieceProcessor(model_proto=data, **options)
            model.id_to_piece(list(range(model.get_piece_size())))  # raises if a piece is not UTF-8
            return model
        except (RuntimeError, UnicodeDecodeError):
            pass
    raise ValueError(f"{file}: file must be a SentencePiece model, got {len(data)} other bytes; fetch it again")
