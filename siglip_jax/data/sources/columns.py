"""Which column, or key, holds the image, the captions and the label; and what their values mean."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

IMAGE = ("image", "image_path", "img", "img_path", "file_name", "filename", "filepath", "image_file", "file", "path")
IMAGE += ("jpg", "jpeg", "png", "webp", "image_url", "url")
TEXT = ("caption", "captions", "text", "texts", "title", "txt", "sentences", "sentence", "description", "alt_text")
LABEL = ("label", "labels", "class", "cls", "class_name", "category", "target")
NO_LABEL = -1


def pick(columns: Iterable[str], given: str | None, guesses: Sequence[str], option: str, where: str) -> str | None:
    """Returns the given column, or the first one of a usual name, or None.

    Raises:
      ValueError: if the given one does not exist.
    """
    columns = list(columns)
    if given is not None:
        if given not in columns:
            raise ValueError(f"{where}: expected the column {given!r} ({option}), found {listed(columns)}")
        return given
    by_name = {column.lower(): column for column in reversed(columns)}
    return next((by_name[name] for name in guesses if name in by_name), None)


def missing(what: str, guesses: Sequence[str], columns: Iterable[str], option: str, where: str) -> ValueError:
    """Returns the error for a column that was not found and not named."""
    return ValueError(
        f"{where}: expected a column of {what} such as {', '.join(guesses[:4])}, found {listed(columns)}; "
        f"name it with {option}"
    )


def listed(names: Iterable[str], most: int = 20) -> str:
    """Returns names for a message, the first ones of many."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(map(repr, names[:most])) or "none") + more


def as_texts(value: Any, where: str) -> tuple[str, ...]:
    """Returns the captions in a value: one string, a list of strings, or nothing.

    Raises:
      ValueError: for anything else.
    """
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: expected a caption or a list of captions, found {value!r:.80}")
    return tuple(map(whole, texts))


def whole(text: str) -> str:
    """Returns the text with halves of surrogate pairs, which JSON can hold and UTF-8 cannot, replaced."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def as_labels(values: Sequence[Any], where: str) -> tuple[Int32[np.ndarray, " examples"], tuple[str, ...]]:
    """Returns labels as positions in the names of the classes, and these names.

    Whole numbers, also as text, are positions already, and their names are the numbers; other texts are names, and
    the classes are sorted. Where there is nothing, or a negative number, the label is `NO_LABEL`.

    Raises:
      ValueError: for anything else.
    """
    plain = [None if value is None or value == "" else value for value in values]
    there = {value for value in plain if value is not None}
    if wrong := [value for value in there if isinstance(value, bool) or not isinstance(value, (int, str))]:
        raise ValueError(f"{where}: expected numbers or names as labels, found {wrong[0]!r}")
    if all(isinstance(value, int) or value.isdecimal() for value in there):
        numbers = [NO_LABEL if value is None else max(int(value), NO_LABEL) for value in plain]
        if numbers and max(numbers) >= 10_000_000:
            raise ValueError(f"{where}: expected labels below 10,000,000, found {max(numbers)}")
        return np.asarray(numbers, np.int32), tuple(map(str, range(max(numbers, default=NO_LABEL) + 1)))
    names = sorted(map(str, there))
    position = {name: i for i, name in enumerate(names)}
    return np.asarray([NO_LABEL if v is None else position[str(v)] for v in plain], np.int32), tuple(names)


def label_of(number: int) -> int | None:
    """Returns a stored label as an `Example` has it."""
    return None if number < 0 else number
