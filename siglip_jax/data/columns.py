"""Columns or keys of images, captions and labels: their usual names and the meaning of their values."""

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

IMAGE = ("image", "image_path", "img", "img_path", "file_name", "filename", "filepath", "image_file", "file", "path")
IMAGE += ("jpg", "jpeg", "png", "webp", "image_url", "url")
TEXT = ("caption", "captions", "text", "texts", "title", "txt", "sentences", "sentence", "description", "alt_text")
LABEL = ("label", "labels", "class", "cls", "class_name", "category", "target")
BOXES, BOX_CAPTIONS = "boxes", "box_captions"  # read where a data set has both
NO_LABEL = -1

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")


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


def as_labels(
    values: Sequence[Any], where: str, name: Callable[[int], str] = "row {}".format
) -> tuple[Int32[np.ndarray, " examples"], tuple[str, ...]]:
    """Returns labels as indices of classes, and the names of the classes.

    If all labels are integers, also as text (`0`, ` 0`, `+0`, `0.0`), they are the indices and the names are the
    numbers. Otherwise labels are names, and the classes are in the order of `class_order`. A missing or blank label,
    NaN and a negative integer become `NO_LABEL`.

    Args:
      values: label of each row.
      where: path of the data set and the field, for messages.
      name: function from the index of a row to its name in messages.

    Raises:
      ValueError: if a label is neither an integer nor a text, or 10,000,000 or more.
    """
    plain = [_plain_label(value, where, name, row) for row, value in enumerate(values)]
    numbers = {value: number_of(value) for value in set(plain)}
    if all(value is None or isinstance(number, int) for value, number in numbers.items()):
        largest = max((number for number in numbers.values() if number is not None), default=NO_LABEL)
        if largest >= 10_000_000:
            raise ValueError(f"{where}: labels must be below 10,000,000, got {largest!r:.80}")
        index = {value: NO_LABEL if n is None else max(int(n), NO_LABEL) for value, n in numbers.items()}
        names = tuple(map(str, range(max(int(largest), NO_LABEL) + 1)))
    else:
        names = class_order(str(value) for value in numbers if value is not None)
        position = {text: i for i, text in enumerate(names)}
        index = {value: position.get(str(value), NO_LABEL) for value in numbers}
    return np.asarray([index[value] for value in plain], np.int32), names


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Returns different names of classes in order: numbers by value, then other names as text; -1 stands for no class.

    The names of folders and the labels of tables have this order, in which class 10 follows class 9.
    """
    numbers = {text: number_of(text) for text in set(names)}
    kept = [text for text, n in numbers.items() if not (isinstance(n, int) and n < 0)]
    return tuple(sorted(kept, key=lambda text: (numbers[text] is None, numbers[text] or 0, text)))


def number_of(value: Any) -> int | float | None:
    """Returns the number that a label is, also as text, as an integer where it is one; None for anything else."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _plain_label(value: Any, where: str, name: Callable[[int], str], row: int) -> int | str | None:
    """Returns a label as an integer or a text without spaces around it; None where it is missing."""
    if isinstance(value, str):
        return value.strip() or None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    number = number_of(value)
    if not isinstance(number, int):
        raise ValueError(f"{where}: labels must be integers or names of classes, got {value!r:.80} in {name(row)}")
    return number


def numbered(paths: Iterable[str | None]) -> Int64[np.ndarray, " rows"]:
    """Returns a number for the file that each path names, counted from 0 by first row; no path is a file of its own."""
    numbers: dict[str | int, int] = {}
    keys = (row if path is None else os.path.normpath(path) for row, path in enumerate(paths))
    return np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), np.int64)


def label_of(number: int) -> int | None:
    """Returns a stored label as the label of an `Example`: None for `NO_LABEL`."""
    return None if number < 0 else number
