"""The files of a tokenizer: `spiece.model` or `tokenizer.json`, `tokenizer_config.json` and its older companions.

Files of `transformers` 4 and 5 are read, and the files written here are read by both. Unknown keys survive a round
trip.
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

# In the reference's order, in which tokens that the vocabulary lacks are numbered.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class AddedToken(NamedTuple):
    """A string that is matched in a text before the text is split into pieces; mirrors `transformers.AddedToken`.

    Attributes:
      content: the string.
      lstrip: whether the token includes the blanks on its left.
      rstrip: whether the token includes the blanks on its right.
      single_word: whether the token matches only between blanks.
      normalized: whether the token is matched in the normalised text.
      special: whether `skip_special_tokens` leaves the token out.
    """

    content: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    special: bool = True

    @classmethod
    def of(cls, value: Any, *, special: bool = True, name: str = "special token") -> "AddedToken":
        """Returns the token of a value.

        Args:
          value: an `AddedToken`, also of `transformers` or `tokenizers`, a non-empty string, or the dictionary of a
            token in a file.
          special: whether the token is special if `value` does not define it.
          name: what the token is, for the error.

        Raises:
          ValueError: for any other value.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str) and value:
            return cls(value, special=special)
        if not isinstance(value, Mapping) and isinstance(getattr(value, "content", None), str):
            value = {field: getattr(value, field) for field in cls._fields if hasattr(value, field)}
        if isinstance(value, Mapping) and isinstance(value.get("content"), str) and value["content"]:
            fields: dict[str, Any] = {"special": special}
            return cls(**fields | {k: v for k, v in value.items() if k in cls._fields})
        raise ValueError(f"{name} must be a string, or an object with a 'content', got {value!r}")


DEFAULT_LENGTH = 64  # default of SiglipTextConfig, for a config.json without the length
_TEXT_MODELS = ("siglip_text_model", "siglip2_text_model")
_READ_TOKENIZERS_ONLY = ("Gemma", "Siglip2", "PreTrainedTokenizerFast", "TokenizersBackend")

Token = str | AddedToken | Mapping[str, Any]  # the mapping is the form of a token in a file


def vocabulary_in(directory: Path) -> str:
    """Returns the name of the file that holds the vocabulary of a tokenizer directory.

    If both files exist, `spiece.model` holds the vocabulary, unless `tokenizer_config.json` names a class that reads
    only `tokenizer.json`.

    Args:
      directory: directory of the tokenizer.

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
    """Returns the number of text positions of the model in a directory, or None if there is no text model.

    Args:
      directory: directory that may contain the model's `config.json`.

    Raises:
      ValueError: if the number of positions in `config.json` is not an integer of at least 1.
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
        raise ValueError(f"{file}: max_position_embeddings must be an integer of at least 1, got {length!r}")
    return length


def read_settings(directory: Path, vocabulary: str) -> dict[str, Any]:
    """Returns the settings of a tokenizer directory, with special and added tokens as `AddedToken`.

    Args:
      directory: directory of the tokenizer.
      vocabulary: name of the vocabulary file that must exist in it.

    Raises:
      FileNotFoundError: if the vocabulary file is missing.
      ValueError: if a file has invalid contents.
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
    """Returns the added tokens by id, from `added_tokens_decoder` or else from the older `added_tokens.json`."""
    if decoder is None:
        file = directory / ADDED_TOKENS
        encoder = read_json(file, "it holds the added tokens") if file.is_file() else {}
        decoder = {index: AddedToken.of(content, special=content in special) for content, index in encoder.items()}
    try:
        return {int(index): AddedToken.of(token) for index, token in decoder.items()}
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{directory / CONFIG}: added_tokens_decoder must map ids to tokens, got an invalid value ({error})"
        ) from error


def write_settings(directory: Path, settings: Mapping[str, Any], decoder: Mapping[int, AddedToken]) -> None:
    """Writes `tokenizer_config.json`, with special tokens as strings and their details in `added_tokens_decoder`.

    Args:
      directory: existing directory of the tokenizer.
      settings: values of the file, by key.
      decoder: added tokens, by id.
    """
    out = dict(settings)
    out["added_tokens_decoder"] = {str(index): token._asdict() for index, token in sorted(decoder.items())}
    text = json.dumps(out, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_atomically(directory / CONFIG, text.encode())
