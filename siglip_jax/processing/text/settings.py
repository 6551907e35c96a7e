"""The files of a tokenizer: `spiece.model` or `tokenizer.json`, `tokenizer_config.json` and its older companions.

Files of `transformers` 4 and 5 are read, and the files written here are read by both. Unknown keys survive a round
trip.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from siglip_jax._checks import shown
from siglip_jax._fields import (
    BOOLEAN,
    COUNT,
    MOST_IDS,
    NUMBER,
    TEXT,
    TEXTS,
    Kind,
    check_fields,
    integer,
    list_of,
    one_of,
)
from siglip_jax._files import read_json, write_atomically

SENTENCEPIECE = "spiece.model"  # SigLIP
TOKENIZERS = "tokenizer.json"  # SigLIP 2
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
OPEN_CLIP = "open_clip_config.json"

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
        raise ValueError(f"{name} must be a string, or an object with a 'content', got {shown(value)}")


def _is_token(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return isinstance(value, AddedToken) or isinstance(value, str) and value != ""
    flags = (value.get(name, False) for name in AddedToken._fields[1:])
    content = value.get("content")
    return isinstance(content, str) and content != "" and all(map(BOOLEAN.holds, flags))


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) < MOST_IDS


def _is_sampling(value: Any) -> bool:
    kinds = {"enable_sampling": BOOLEAN, "nbest_size": integer(-1, MOST_IDS - 1), "alpha": NUMBER}
    return isinstance(value, Mapping) and all(name in kinds and kinds[name].holds(v) for name, v in value.items())


_TOKEN = Kind("a string, or an object with a 'content'", _is_token)
_TOKENS = list_of(_TOKEN, "strings, or of objects with a 'content'")
_ID = integer(0, MOST_IDS - 1)
SETTINGS: dict[str, Kind] = {
    **dict.fromkeys(NAMED, _TOKEN),
    "additional_special_tokens": _TOKENS,
    "extra_special_tokens": Kind(
        _TOKENS.name, lambda value: _TOKENS.holds([*value.values()] if isinstance(value, Mapping) else value)
    ),
    "added_tokens_decoder": Kind(
        f"an object from ids below {MOST_IDS} to tokens",
        lambda value: isinstance(value, Mapping) and all(map(_is_index, value)) and all(map(_is_token, value.values())),
    ),
    "model_max_length": Kind(
        "a number of tokens, at least 1",
        lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 1,
    ),
    "padding_side": one_of("right", "left"),
    "truncation_side": one_of("right", "left"),
    "model_input_names": TEXTS,
    **dict.fromkeys(("clean_up_tokenization_spaces", "split_special_tokens", "do_lower_case"), BOOLEAN),
    "sp_model_kwargs": Kind("an object of enable_sampling, nbest_size and alpha", _is_sampling),
    "tokenizer_class": TEXT,
}
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
        return _open_clip_length(directory / OPEN_CLIP)
    config = read_json(file, "it holds the model's configuration")
    text = config.get("text_config", config if config.get("model_type") in _TEXT_MODELS else None)
    if not isinstance(text, dict):
        return None
    check_fields(file, text, {"max_position_embeddings": COUNT})
    return text.get("max_position_embeddings") or DEFAULT_LENGTH


def _open_clip_length(file: Path) -> int | None:
    """Returns the number of text positions in the configuration of open_clip; None without the file."""
    if not file.is_file():
        return None
    model = read_json(file, "it holds the model's configuration").get("model_cfg")
    text = model.get("text_cfg") if isinstance(model, dict) else None
    if not isinstance(text, dict):
        return None
    check_fields(file, text, {"context_length": COUNT})
    return text.get("context_length")


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
    check_fields(config, settings, SETTINGS)
    if "added_tokens_decoder" not in settings:
        legacy = directory / SPECIAL_TOKENS_MAP
        if legacy.is_file():
            special_tokens = read_json(legacy, "it holds the special tokens")
            check_fields(legacy, special_tokens, SETTINGS)
            settings |= special_tokens
    for name in ("eos_token", "unk_token", "pad_token"):
        if settings.get(name, "") is None:
            raise ValueError(f"{config}: {name} must be a token, got null; leave it out for the default")
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
        wrong = next((value for value in encoder.values() if not _ID.holds(value)), 0)
        if wrong != 0:
            raise ValueError(f"{file}: ids of tokens must be {_ID.name}, got {shown(wrong)}")
        decoder = {i: AddedToken(token, special=token in special) for token, i in encoder.items() if token}
    return {int(index): AddedToken.of(token) for index, token in decoder.items()}


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
