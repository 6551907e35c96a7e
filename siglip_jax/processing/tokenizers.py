"""SentencePiece tokenizer of SigLIP; mirrors `transformers.SiglipTokenizer`, same ids, texts encoded in batches.

A text is lower-cased, loses its ASCII punctuation and its runs of blanks, and becomes pieces and a final `</s>`.
Strings of special tokens are cut out before that. SentencePiece always sees `<unk>` and U+2581 before the text, as in
the reference: a text then starts with a word, what follows a special token does not.

It differs from the reference in these: a `</s>` at the end of a text draws no warning, and `special_tokens_mask` is as
long as `input_ids` then too; padding to a maximum that is unknown is an error, not a silent nothing; rows of unequal
length do not become an array of objects; arrays are int32; a directory of SigLIP 2 gives a `Siglip2Tokenizer`.
"""

import os
from collections.abc import Sequence
from typing import Any, ClassVar

from siglip_jax import hub
from siglip_jax.processing.base import TokenizerBase
from siglip_jax.processing.gemma import Siglip2Tokenizer
from siglip_jax.processing.sequences import Ids
from siglip_jax.processing.tokenizer_files import DEFAULT_LENGTH, SENTENCEPIECE, AddedToken, Token, vocabulary_in
from siglip_jax.processing.vocabulary import Vocabulary


class SiglipTokenizer(Vocabulary):
    """Texts to token ids and back, by a `spiece.model`; the attributes are those of `TokenizerBase`."""

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
            os.fspath(vocab_file),
            added_tokens_decoder=added_tokens_decoder or {},
            do_lower_case=do_lower_case,
            options=settings.get("sp_model_kwargs"),
            special_tokens={"eos_token": eos_token, "unk_token": unk_token, "pad_token": pad_token},
            additional_special_tokens=additional_special_tokens,
            model_max_length=model_max_length,
            settings=settings,
        )

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
