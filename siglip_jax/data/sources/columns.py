"""Columns or keys of images, captions and labels: their usual names and the meaning of their values."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

IMAGE = ("image", "image_path", "img", "img_path", "file_name", "filename", "filepath", "image_file", "file", "path")
IMAGE += ("jpg", "jpeg", "png", "webp", "image_url", "url")
TEXT = ("caption", "captions", "text", "texts", "title", "txt", "sentences", "sentence", "description", "alt_text")
LABEL = ("label", "labels", "class", "cls", "class_name", "category", "target")
NO_LABEL = -1


def pick(columns: Iterable[str], given: str | None, guesses: Sequence[str], option: str, where: str) -> str | None:
    """Returns the given column, or the first one with a usual name, or None.

    Args:
      columns: names of the columns that exist.
      given: name that the user gave, or None.
      guesses: usual names in lower case, the most likely first.
      option: name of the argument that the user gives the column with, for the message.
      where: path of the data set, for the message.

    Raises:
      ValueError: if the given column does not exist.
    """
    columns = list(columns)
    if given is not None:
        if given not in columns:
            raise ValueError(f"{where}: {option} must be one of the columns {listed(columns)}, got {given!r}")
        return given
    by_name = {column.lower(): column for column in reversed(columns)}
    return next((by_name[name] for name in guesses if name in by_name), None)


def missing(what: str, guesses: Sequence[str], columns: Iterable[str], option: str, where: str) -> ValueError:
    """Returns the error for a column that has none of the usual names and was not named by the user."""
    return ValueError(
        f"{where}: a column must hold {what}, such as {', '.join(guesses[:4])}, got {listed(columns)}; "
        f"name it with {option}"
    )


def listed(names: Iterable[str], most: int = 20) -> str:
    """Returns names as the text of a message, at most `most` of them."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(map(repr, names[:most])) or "none") + more


def as_texts(value: Any, where: str) -> tuple[str, ...]:
    """Returns the captions in a value: a string, a list of strings, or None.

    Raises:
      ValueError: if the value is anything else.
    """
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: captions must be a string or a list of strings, got {value!r:.80}")
    return tuple(map(whole, texts))


def whole(text: str) -> str:
    """Returns the text with lone surrogates, which JSON can hold and UTF-8 cannot, replaced."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def as_labels(values: Sequence[Any], where: str) -> tuple[Int32[np.ndarray, " examples"], tuple[str, ...]]:
    """Returns labels as indices of classes, and the names of the classes.

    If all labels are integers, also as text, they are the indices and the names are the numbers. Otherwise labels are
    names, and the classes are sorted by name. A missing label and a negative number become `NO_LABEL`.

    Raises:
      ValueError: if a label is neither an integer nor a text, or 10,000,000 or more.
    """
    plain = [None if value is None or value == "" else value for value in values]
    there = {value for value in plain if value is not None}
    if wrong := [value for value in there if isinstance(value, bool) or not isinstance(value, (int, str))]:
        raise ValueError(f"{where}: labels must be integers or names of classes, got {wrong[0]!r}")
    if all(isinstance(value, int) or value.isdecimal() for value in there):
        numbers = [NO_LABEL if value is None else max(int(value), NO_LABEL) for value in plain]
        if numbers and max(numbers) >= 10_000_000:
            raise ValueError(f"{where}: labels must be below 10,000,000, got {max(numbers)}")
        return np.asarray(numbers, np.int32), tuple(map(str, range(max(numbers, default=NO_LABEL) + 1)))
    names = sorted(map(str, there))
    position = {name: i for i, name in enumerate(names)}
    return np.asarray([NO_LABEL if v is None else position[str(v)] for v in plain], np.int32), tuple(names)


def numbered(paths: Iterable[str | None]) -> Int64[np.ndarray, " rows"]:
    """Returns a number for the file that each path names, counted from 0 by first row; no path is a file of its own."""
    numbers: dict[str | int, int] = {}
    keys = (row if path is None else os.path.normpath(path) for row, path in enumerate(paths))
    return np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), np.int64)


def label_of(number: int) -> int | None:
    """Returns a stored label as the label of an `Example`: None for `NO_LABEL`."""
    return None if number < 0 else number
