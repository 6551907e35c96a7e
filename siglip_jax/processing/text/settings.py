"""The files of a tokenizer: `spiece.model` or `tokenizer.json`, and `tokenizer_config.json` with its older companions.

Reads what version 4 and version 5 of the reference write; writes a form that both read. Keys it has no use for
survive a round trip.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from siglip_jax._files import read_json, write_atomically

SENTENCEPIECE = "spiece.model"  # SigLIP
TOKENIZERS = "tokenizer.json"  # SigLIP 2
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"

# The reference's order: ids of tokens that the vocabulary lacks are given out in it.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class AddedToken(NamedTuple):
    """A string that is matched in a text before the vocabulary's model sees it; mirrors the reference's class."""

    content: str
    lstrip: bool = False  # takes the blanks on its left along
    rstrip: bool = False  # takes the blanks on its right along
    single_word: bool = False  # counts only between blanks
    normalized: bool = False
    special: bool = True  # left out by `skip_special_tokens`

    @classmethod
    def of(cls, value: object, *, special: bool = True) -> "AddedToken":
        """Makes one from a string or from the dictionary a file holds.

        Raises:
          ValueError: if it is neither.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str) and value:
            return cls(value, special=special)
        if isinstance(value, Mapping) and isinstance(value.get("content"), str) and value["content"]:
            fields: dict[str, Any] = {"special": special}
            return cls(**fields | {k: v for k, v in value.items() if k in cls._fields})
        raise ValueError(f"special token: expected a string, or an object with a 'content', found {value!r}")


DEFAULT_LENGTH = 64  # of SiglipTextConfig, where a config.json leaves it out
_TEXT_MODELS = ("siglip_text_model", "siglip2_text_model")
_READ_TOKENIZERS_ONLY = ("Gemma", "Siglip2", "PreTrainedTokenizerFast", "TokenizersBackend")

Token = str | AddedToken | Mapping[str, Any]  # the last is the form it has in a file


def vocabulary_in(directory: Path) -> str:
    """Returns the name of the file that holds the vocabulary of a tokenizer directory, whatever its model is called.

    With both files in it `tokenizer.json` is a companion of `spiece.model`, unless `tokenizer_config.json` names a
    class that reads nothing but `tokenizer.json`.

    Raises:
      FileNotFoundError: if the directory has neither.
    """
    there = [name for name in (SENTENCEPIECE, TOKENIZERS) if (directory / name).is_file()]
    if not there:
        raise FileNotFoundError(f"{directory}: no {SENTENCEPIECE} and no {TOKENIZERS} here; a tokenizer needs one")
    if len(there) == 1 or not (directory / CONFIG).is_file():
        return there[0]
    named = read_json(directory / CONFIG, "it holds the tokenizer's settings").get("tokenizer_class")
    return TOKENIZERS if str(named).startswith(_READ_TOKENIZERS_ONLY) else SENTENCEPIECE


def text_length(directory: Path) -> int | None:
    """Returns the text positions of the model in this directory, or None if there is no model.

    Raises:
      ValueError: if `config.json` holds no number of positions where it should.
    """
    file = directory / "config.json"
    if not file.is_file():
        return None
    config = read_json(file, "it holds the model's configuration")
    text = config.get("text_config", config if config.get("model_type") in _TEXT_MODELS else None)
    if not isinstance(text, dict):
        return None
    length = text.get("max_position_embeddings", DEFAULT_LENGTH)
    if not isinstance(length, int) or length < 1:
        raise ValueError(f"{file}: max_position_embeddings: expected a whole number above 0, found {length!r}")
    return length


def read_settings(directory: Path, vocabulary: str) -> dict[str, Any]:
    """Returns the settings of a tokenizer directory; special tokens and `added_tokens_decoder` as `AddedToken`.

    Raises:
      FileNotFoundError: if the directory has no file of the name `vocabulary`.
      ValueError: if a file cannot be made sense of.
    """
    if not (directory / vocabulary).is_file():
        raise FileNotFoundError(f"{directory}: no {vocabulary} here; this tokenizer needs it")
    config = directory / CONFIG
    settings = read_json(config, "it holds the tokenizer's settings") if config.is_file() else {}
    if "added_tokens_decoder" not in settings:
        legacy = directory / SPECIAL_TOKENS_MAP
        if legacy.is_file():
            settings |= read_json(legacy, "it holds the special tokens")
    for name in NAMED:
        if settings.get(name) is not None:
            settings[name] = AddedToken.of(settings[name])
    extra = settings.pop("extra_special_tokens", None) or settings.pop("additional_special_tokens", None) or []
    settings.pop("additional_special_tokens", None)
    extra = extra.values() if isinstance(extra, Mapping) else extra
    settings["additional_special_tokens"] = [AddedToken.of(token) for token in extra]
    special = {settings[name].content for name in NAMED if settings.get(name)}
    special |= {token.content for token in settings["additional_special_tokens"]}
    settings["added_tokens_decoder"] = _added(directory, settings.get("added_tokens_decoder"), special)
    return settings


def _added(directory: Path, decoder: Any, special: set[str]) -> dict[int, AddedToken]:
    if decoder is None:
        file = directory / ADDED_TOKENS
        encoder = read_json(file, "it holds the added tokens") if file.is_file() else {}
        decoder = {index: AddedToken.of(content, special=content in special) for content, index in encoder.items()}
    try:
        return {int(index): AddedToken.of(token) for index, token in decoder.items()}
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{directory / CONFIG}: added_tokens_decoder does not map ids to tokens ({error})") from error


def write_settings(directory: Path, settings: Mapping[str, Any], decoder: Mapping[int, AddedToken]) -> None:
    """Writes `tokenizer_config.json`; named and additional special tokens as strings, details in the decoder."""
    out = dict(settings)
    out["added_tokens_decoder"] = {str(index): token._asdict() for index, token in sorted(decoder.items())}
    text = json.dumps(out, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_atomically(directory / CONFIG, text.encode())
