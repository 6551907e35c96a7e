"""Truncates, pads and stacks rows of token ids.

Mirrors `truncate_sequences` and `_pad` of the reference's `PythonBackend`, on whole batches at once. Rows that cannot
be stacked raise an error, where the reference returns an object array.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from siglip_jax._checks import check_choice

Ids = list[int]

TRUNCATION = ("longest_first", "only_first", "only_second", "do_not_truncate")
PADDING = ("longest", "max_length", "do_not_pad")


def strategies(padding: object, truncation: object, max_length: int | None) -> tuple[str, str]:
    """Returns the names of the padding and truncation strategies.

    Args:
      padding: a name in `PADDING`, True ("longest") or False ("do_not_pad"). Members of the reference's enumerations of
        these names are accepted too.
      truncation: a name in `TRUNCATION`, True ("longest_first") or False ("do_not_truncate"); None: True if a length is
        given and `padding` is False, else False.
      max_length: length in tokens, or None.

    Raises:
      ValueError: for a strategy that does not exist or a length below 1.
    """
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    if truncation is None and max_length is not None and padding is False:
        truncation = True
    padding, truncation = (getattr(value, "value", value) for value in (padding, truncation))
    padding = {True: "longest", False: "do_not_pad"}.get(padding, padding) if isinstance(padding, bool) else padding
    if truncation is None or isinstance(truncation, bool):
        truncation = "longest_first" if truncation else "do_not_truncate"
    check_choice("padding", padding, PADDING)
    check_choice("truncation", truncation, TRUNCATION)
    return str(padding), str(truncation)


def _cut(ids: Ids, remove: int, side: str) -> Ids:
    """Returns the ids without `remove` of them at one side."""
    if remove <= 0:
        return ids
    keep = max(len(ids) - remove, 0)
    return ids[:keep] if side == "right" else ids[len(ids) - keep :]


def truncate(first: Ids, second: Ids | None, excess: int, strategy: str, side: str) -> tuple[Ids, Ids | None]:
    """Returns one text or pair with `excess` ids removed at `side`.

    As in the reference, "longest_first" shortens the longer of a pair until both are equally long, then both in turn.

    Args:
      first: ids of the text.
      second: ids of the second text of a pair; None: a single text.
      excess: number of ids to remove; below 1: none.
      strategy: a name in `TRUNCATION`.
      side: "right" or "left".
    """
    if excess <= 0 or strategy == "do_not_truncate":
        return first, second
    if strategy == "only_first" or (strategy == "longest_first" and second is None):
        return _cut(first, excess, side), second
    if second is None or (strategy == "only_second" and not second):
        return first, second
    if strategy == "only_second":
        return first, _cut(second, excess, side)
    uneven = min(abs(len(first) - len(second)), excess)
    rest = excess - uneven
    if len(first) > len(second):
        return _cut(first, uneven + rest // 2, side), _cut(second, rest - rest // 2, side)
    return _cut(first, rest // 2, side), _cut(second, uneven + rest - rest // 2, side)


def truncate_all(
    firsts: list[Ids], seconds: list[Ids] | None, room: int, strategy: str, side: str
) -> tuple[list[Ids], list[Ids] | None]:
    """Returns all texts or pairs, each truncated to `room` ids by a strategy in `TRUNCATION`."""
    if strategy == "do_not_truncate" or (seconds is None and strategy == "only_second"):
        return firsts, seconds
    if seconds is None:
        return [row if len(row) <= room else _cut(row, len(row) - room, side) for row in firsts], None
    both = zip(firsts, seconds, strict=True)
    cut = [truncate(a, b, len(a) + len(b) - room, strategy, side) for a, b in both]
    return [a for a, _ in cut], [b or [] for _, b in cut]


def pad(rows: Sequence[Ids], width: int, fill: int, side: str) -> None:
    """Pads the rows to `width` with `fill`, in place; longer rows are unchanged."""
    fills = [(fill,) * n for n in range(width, 0, -1)]
    for row in rows:
        if len(row) < width:
            if side == "right":
                row += fills[len(row)]
            else:
                row[:0] = fills[len(row)]


def padded_width(padding: str, max_length: int | None, multiple: int | None, rows: Sequence[Ids]) -> int | None:
    """Returns the length that rows are padded to; None: they are not padded."""
    if padding == "do_not_pad":
        return None
    width = max(map(len, rows)) if padding == "longest" else int(max_length or 0)
    return width + -width % (multiple or 1)


def as_lists(values: Any) -> Any:
    """Returns an array, or a list of arrays or lists, as new lists."""
    if hasattr(values, "__array__") and not isinstance(values, np.generic):
        return np.asarray(values).tolist()
    if not isinstance(values, (list, tuple)):
        return values
    return [as_lists(value) if isinstance(value, (list, tuple)) or np.ndim(value) else value for value in values]


def attention(rows: Sequence[Ids], width: int | None, side: str) -> list[list[int]]:
    """Returns the attention mask of rows that will be padded to `width`: 1 for each id, 0 for padding."""
    made: dict[int, list[int]] = {}
    for n in set(map(len, rows)):
        zeros = [0] * ((width or 0) - n)
        made[n] = [1] * n + zeros if side == "right" else zeros + [1] * n
    return [made[len(row)].copy() for row in rows]


def stacked(
    rows: Sequence[Ids], width: int | None, fill: int, side: str
) -> tuple[Int32[np.ndarray, "text position"], Bool[np.ndarray, "text position"]]:
    """Returns the rows padded and stacked into one array, and a mask that is True for their ids.

    Args:
      rows: ids of each text.
      width: length after padding; None: the rows are not padded.
      fill: id of the padding.
      side: side of the padding, "right" or "left".

    Raises:
      ValueError: if the rows differ in length or are longer than `width`.
    """
    lengths = np.fromiter(map(len, rows), np.int64, count=len(rows))
    longest, shortest = int(lengths.max()), int(lengths.min())
    if width is None and longest != shortest:
        raise ValueError(
            f"texts must have one length to be stacked, got {shortest} to {longest} tokens; pass padding='max_length'"
            " or padding=True"
        )
    if width is not None and longest > width:
        raise ValueError(f"texts must have at most max_length={width} tokens, got {longest}; pass truncation=True")
    width = longest if width is None else width
    column = np.arange(width)
    there = column < lengths[:, None] if side == "right" else column >= width - lengths[:, None]
    out = np.full((len(rows), width), fill, np.int32)
    out[there] = np.fromiter(itertools.chain.from_iterable(rows), np.int32, count=int(lengths.sum()))
    return out, there


def is_ids(value: Any) -> bool:
    """Returns whether a value is a non-empty list of token ids rather than of texts."""
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], (int, np.integer))


def texts_and_pairs(text: Any, pair: Any) -> tuple[bool, Sequence[Any], Sequence[Any] | None]:
    """Returns whether a single text was passed, the list of texts, and the list of second texts or None.

    Args:
      text: a text, a list of texts, or a list of pairs; a list of token ids counts as a text.
      pair: the second text of each text, or None.

    Raises:
      ValueError: for any other value, or if there are not as many second texts as texts.
    """
    single = isinstance(text, str) or is_ids(text)
    texts = [text] if single else text
    pairs = [pair] if single and pair is not None else pair
    if not isinstance(texts, (list, tuple)) or not texts:
        raise ValueError(f"text must be a string or a list of at least one string, got {text!r}")
    if pairs is None and any(isinstance(t, (list, tuple)) and not is_ids(t) for t in texts):
        if not all(isinstance(t, (list, tuple)) and len(t) == 2 for t in texts):
            raise ValueError("text must be a list of strings or of pairs of strings, got a list of other lists")
        texts, pairs = [t[0] for t in texts], [t[1] for t in texts]
    if pairs is not None and (not isinstance(pairs, (list, tuple)) or len(pairs) != len(texts)):
        raise ValueError(f"text_pair must hold {len(texts)} texts, as many as text, got {pair!r}")
    return single, texts, pairs
