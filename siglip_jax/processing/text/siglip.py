"""SentencePiece tokenizer of SigLIP; mirrors `transformers.SiglipTokenizer`, same ids, texts encoded in batches.

A text is lower-cased, loses its ASCII punctuation and its runs of blanks, and becomes pieces and a final `</s>`.
Strings of special tokens are cut out before that. SentencePiece always sees `<unk>` and U+2581 before the text, as in
the reference: a text then starts with a word, what follows a special token does not.

It differs from the reference in these: a `</s>` at the end of a text draws no warning, and `special_tokens_mask` is as
long as `input_ids` then too; where two added tokens overlap in a text the leftmost longest always wins, while the
reference's search loses some of them; a directory of SigLIP 2 gives a `Siglip2Tokenizer`. `base` lists what else differs.
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
from siglip_jax.processing.text.canonical import canonicalize, remove_punctuation
from siglip_jax.processing.text.settings import DEFAULT_LENGTH, SENTENCEPIECE, AddedToken, Token, vocabulary_in
from siglip_jax.processing.text.siglip2 import Siglip2Tokenizer

WORD_START = "▁"  # U+2581, which SentencePiece writes for a blank
_THREADS_FROM = 256  # texts; below, starting SentencePiece's threads costs more than it gains


class SiglipTokenizer(TokenizerBase):
    """Texts to token ids and back, by a `spiece.model`; further attributes are those of `TokenizerBase`.

    Attributes:
      sp_model: the SentencePiece processor.
      do_lower_case: whether texts are lower-cased.
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
        self.added_tokens_decoder = dict(added_tokens_decoder or {})
        self.added_tokens_encoder = {token.content: index for index, token in self.added_tokens_decoder.items()}
        for content in self.all_special_tokens:
            if content not in self.added_tokens_encoder:
                index = self.sp_model.piece_to_id(content)
                if self.sp_model.id_to_piece(index) != content:
                    index = max([self.vocab_size, *(i + 1 for i in self.added_tokens_decoder)])
                self.added_tokens_decoder[index] = AddedToken(content)
                self.added_tokens_encoder[content] = index
        self._number_special_tokens()
        self.unk_token_length = len(self.sp_model.encode(self.unk_token))
        added = sorted(self.added_tokens_encoder, key=len, reverse=True)  # longest first: "<a1>" before "<a"
        self._added = re.compile("(" + "|".join(map(re.escape, added)) + ")")
        own = {content: self.sp_model.piece_to_id(content) for content in added}
        # Ids that SentencePiece gives to the string of an added token which has another id.
        self._doubtful = {own[content] for content, index in self.added_tokens_encoder.items() if own[content] != index}
        self._joinable = not any(WORD_START in content or "\0" in content for content in added)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        **settings: Any,
    ) -> TokenizerBase:
        """Reads a tokenizer directory, Hub repository or vocabulary file, of version 4 or 5 of the reference.

        The files decide, not the name of the model: with `spiece.model` this is a `SiglipTokenizer`, with
        `tokenizer.json` alone a `Siglip2Tokenizer`, which is what the SigLIP 2 checkpoints have, those whose
        `model_type` is `siglip` too.

        Args:
          **settings: arguments of the constructor; they take precedence over the files.

        Raises:
          FileNotFoundError: if it or its vocabulary is missing.
          ValueError: if it holds a broken file.
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
        """Number of pieces, without tokens that were added to them."""
        return self.sp_model.get_piece_size()

    def get_vocab(self) -> dict[str, int]:
        """Returns the id of every piece and added token."""
        return {self._token(i): i for i in range(self.vocab_size)} | self.added_tokens_encoder

    def _token(self, index: int) -> str:
        if index in self.added_tokens_decoder:
            return self.added_tokens_decoder[index].content
        if not 0 <= index < self.vocab_size:
            raise ValueError(f"token id {index}: expected 0 to {self.vocab_size - 1}, the ids of {self.vocab_file}")
        return self.sp_model.id_to_piece(index)

    def _id(self, token: str) -> int:
        index = self.added_tokens_encoder.get(token)
        return self.sp_model.piece_to_id(token) if index is None else index

    def remove_punctuation(self, text: str) -> str:
        """Returns a text without the 32 ASCII punctuation marks.

        Args:
          text: any text.
        """
        return remove_punctuation(text)

    def canonicalize_text(self, text: str, *, keep_punctuation_exact_string: str | None = None) -> str:
        """Returns a text without punctuation, with single blanks and none around, lower-cased if `do_lower_case`.

        Args:
          text: any text.
          keep_punctuation_exact_string: string that is kept wherever it occurs; "{}" keeps the slot of a template.
        """
        return canonicalize(text, keep=keep_punctuation_exact_string or "", lower_case=self.do_lower_case)

    def tokenize(self, text: str, *, split_special_tokens: bool = False) -> list[str]:
        """Returns the pieces of one text, without the final `</s>`.

        Args:
          split_special_tokens: treat the string of an added token as any other text.
        """
        whole = WORD_START + text.replace(WORD_START, " ")
        tokens: list[str] = []
        for part in [whole] if split_special_tokens else self._cut(whole):
            tokens += [part] if part in self.added_tokens_encoder and not split_special_tokens else self._pieces(part)
        drop = len(tokens) > 1 and tokens[0] == WORD_START and tokens[1] in self.all_special_tokens
        return tokens[1:] if drop else tokens

    def _pieces(self, chunk: str) -> list[str]:
        pieces = self.sp_model.encode(self.unk_token + self.canonicalize_text(chunk), out_type=str)
        return pieces[self.unk_token_length :] if len(pieces) >= self.unk_token_length else pieces

    def _cut(self, text: str) -> list[str]:
        """Cuts the added tokens out of a text and sees to `single_word` and to the blanks they take along."""
        parts = [part for part in self._added.split(text) if part]
        for i, part in enumerate(parts):
            if part not in self.added_tokens_encoder:
                continue
            token = self.added_tokens_decoder[self.added_tokens_encoder[part]]
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
        """Returns the ids of the pieces of each text, as `tokenize` would give them, all texts at once."""
        joined = "\0".join(texts)
        if not self._joinable or joined.count("\0") != len(texts) - 1:
            return [self._ids_of(text, split_special_tokens) for text in texts]
        # One pass over all texts: NUL is neither cased nor blank, so it changes nothing around it.
        lowered = joined.lower() if self.do_lower_case else joined
        cleaned = remove_punctuation(lowered.replace(WORD_START, " ")).split("\0")
        start = self.unk_token + WORD_START
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
        return self.convert_tokens_to_ids(self.tokenize(text, split_special_tokens=split_special_tokens))

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Returns the text of some tokens; special tokens stand in it as they are."""
        text, pending, after_special = "", [], False
        for token in tokens:
            if token not in self.all_special_tokens:
                pending.append(token)
                after_special = False
                continue
            text += ("" if after_special else " ") + self.sp_model.decode(pending) + token
            pending, after_special = [], True
        return (text + self.sp_model.decode(pending)).strip()


def _read(file: str) -> bytes:
    """Returns the bytes of a `spiece.model`.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such file; a tokenizer needs its SentencePiece model")
    return Path(file).read_bytes()


def _load(data: bytes, file: str, options: Mapping[str, Any]) -> sentencepiece.SentencePieceProcessor:
    """Returns the SentencePiece processor of a model's bytes.

    Raises:
      ValueError: if they are not a SentencePiece model.
    """
    if data:  # an empty model would load, and complain at every use
        try:
            return sentencepiece.SentencePieceProcessor(model_proto=data, **options)
        except RuntimeError:
            pass
    raise ValueError(f"{file}: expected a SentencePiece model, found {len(data)} other bytes; fetch it again")
