"""Boxes of an example and their captions, as texts that a caption decoder tells or completes.

Source: Wan et al. 2024 (LocCa), arXiv 2403.19596, whose two further targets these are.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from siglip_jax.data.columns import whole
from siglip_jax.processing.text.base import TokenizerBase

CELLS = 500  # a side of an image, in the unit of the four numbers that stand for a box
TASKS = ("referring", "grounded")  # a box from its caption; a box and its caption
_WORDS = ("find", "tell")  # first word of the text of each task


class Region(NamedTuple):
    """A part of an image.

    Attributes:
      box: left, top, right and bottom, as shares of the width and height of the image.
      caption: what is in it.
    """

    box: tuple[float, ...]
    caption: str


def regions_of(boxes: Any, captions: Any, where: str) -> list[Region]:
    """Returns the boxes of an example with their captions.

    Args:
      boxes: (n, 4) numbers from 0 to 1: left, top, right and bottom of each box; None: there are none.
      captions: caption of each box.
      where: name of the example, for messages.

    Raises:
      ValueError: if the boxes are no such numbers, or a box has no caption.
    """
    if boxes is None:
        return []
    try:
        found = np.asarray(boxes, np.float64)
    except (TypeError, ValueError):
        found = np.full((1, 1), np.nan)
    if not found.size:
        return []
    if found.ndim != 2 or found.shape[1] != 4 or not ((found >= 0) & (found <= 1)).all():
        raise ValueError(
            f"{where}: boxes must be lists of left, top, right and bottom from 0 to 1, got {boxes!r:.80}; divide pixels"
            " by the width and height of the image"
        )
    if (found[:, 2:] < found[:, :2]).any():
        wrong = found[(found[:, 2:] < found[:, :2]).any(axis=1)][0].tolist()
        raise ValueError(f"{where}: boxes must be left, top, right and bottom, got {wrong}")
    texts = [*captions] if isinstance(captions, list | tuple) else []
    if len(texts) != len(found) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{where}: box_captions must be a text for each of {len(found)} boxes, got {captions!r:.80}")
    return [Region(tuple(box), whole(text)) for box, text in zip(found.tolist(), texts, strict=True)]


def region_arrays(
    tokenizer: TokenizerBase, regions: Sequence[Region | None], length: int
) -> dict[str, Int32[np.ndarray, "rows 2 length"] | Float32[np.ndarray, "rows 2 length"]]:
    """Returns the texts of both tasks for a region of each example, and which of their tokens are to be predicted.

    "find a red apple 0 120 250 500" is to be completed from the caption on, "tell 0 120 250 500 a red apple" from its
    first word on. The four numbers are left, top, right and bottom from 0 to 500. Long captions are cut.

    Args:
      tokenizer: tokenizer of the model.
      regions: a region of each example; None: the example has none, and no token of it is predicted.
      length: tokens of a text, its end included.

    Returns:
      `region_ids`, (rows, 2, length) int32, for each of `TASKS`; `region_weights`, of that shape float32, 1 / count for
      the tokens that are predicted and 0 for the others.

    Raises:
      ValueError: if the vocabulary lacks digits, or a box leaves no room for a token of its caption.
    """
    there = [region for region in regions if region is not None]
    numbers = [" ".join(str(round(x * CELLS)) for x in region.box) for region in there]
    encoded = tokenizer.encode_texts([*_WORDS, *numbers, *(region.caption for region in there)])
    find, tell, *rest = encoded
    pairs = iter(zip(rest[: len(there)], rest[len(there) :], strict=True))
    shape = (len(regions), len(TASKS), length)
    ids, weights = np.full(shape, tokenizer.pad_token_id, np.int32), np.zeros(shape, np.float32)
    for row, region in enumerate(regions):
        if region is None:
            continue
        box, caption = next(pairs)
        if tokenizer.unk_token_id in box:
            raise ValueError("the tokenizer must have digits for boxes, got none; leave them out: captioning.boxes=0")
        room = length - 1 - max(len(find), len(tell)) - len(box)
        if room < 1:
            raise ValueError(
                f"texts must have {length - room + 1} tokens or more for a box with its caption, got {length}; leave"
                " out the boxes with captioning.boxes=0"
            )
        caption = caption[:room]
        for task, given, told in ((0, [*find, *caption], box), (1, tell, [*box, *caption])):
            text = [*given, *told, tokenizer.eos_token_id]
            ids[row, task, : len(text)] = text
            weights[row, task, len(given) : len(text)] = 1 / (len(told) + 1)
    return {"region_ids": ids, "region_weights": weights}
