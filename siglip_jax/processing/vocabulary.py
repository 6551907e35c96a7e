"""A SentencePiece model with added tokens: texts to pieces and ids and back, one by one or many at once.

Mirrors what `transformers.SiglipTokenizer` inherits from `SentencePieceBackend`, and its own `tokenize`. Where two
added tokens overlap in a text the leftmost longest always wins here; the reference's search loses some of them.
"""

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from siglip_jax.processing.base import TokenizerBase
from siglip_jax.processing.sequences import Ids
from siglip_jax.processing.tokenizer_files import AddedToken

WORD_START = "▁"  # U+2581, which SentencePiece writes for a blank
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_THREADS_FROM = 256  # texts; below, starting SentencePiece's threads costs more than it gains


def read_vocabulary(file: str) -> bytes:
    """Returns the bytes of a `spiece.model`.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such file; a tokenizer needs its SentencePiece model")
    return Path(file).read_bytes()


def load_vocabulary(data: bytes, file: str, options: Mapping[str, Any]) -> sentencepiece.SentencePieceProcessor:
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


class Vocabulary(TokenizerBase):
    """Pieces, added tokens, and the way from a text to both.

    Attributes:
      sp_model: the SentencePiece processor.
    """

    def __init__(
        self,
        file: str,
        *,
        added_tokens_decoder: Mapping[int, AddedToken],
        do_lower_case: bool,
        options: Mapping[str, Any] | None,
        **base: Any,
    ) -> None:
        """Reads `file`; a special token that neither it nor `added_tokens_decoder` knows gets the next free id."""
        super().__init__(**base)
        self.vocab_file = file
        self.do_lower_case = do_lower_case
        self._bytes = read_vocabulary(file)
        self.sp_model = load_vocabulary(self._bytes, file, options or {})
        self.added_tokens_decoder = dict(added_tokens_decoder)
        self.added_tokens_encoder = {token.content: index for index, token in added_tokens_decoder.items()}
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
        """Returns the text without the 32 ASCII punctuation marks."""
        return text.translate(_PUNCTUATION)

    def canonicalize_text(self, text: str, *, keep_punctuation_exact_string: str | None = None) -> str:
        """Returns the text lower-cased (if `do_lower_case`), without punctuation, with single blanks and none around.

        Args:
          keep_punctuation_exact_string: kept wherever it occurs; `"{}"` keeps the slot of a prompt template.
        """
        text = text.lower() if self.do_lower_case else text
        keep = keep_punctuation_exact_string
        parts = text.split(keep) if keep else [text]
        return " ".join((keep or "").join(map(self.remove_punctuation, parts)).split())

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
        cleaned = lowered.replace(WORD_START, " ").translate(_PUNCTUATION).split("\0")
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
