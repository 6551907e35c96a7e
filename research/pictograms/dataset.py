"""The pictogram data set in memory: images, their rows, and the prompts that captions are trained with.

`research.pictograms.build` writes the files: `{split}.npz` holds `images`, (N, 64, 64, 4) uint8 with straight alpha,
and `{split}.json` holds one row per image. The splits are `train`, `fluent3d` (a vendor that is not in `train`) and
`clipart_test`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

NEAR_DUPLICATE = 0.95  # similarity to a training image above which a row counts as a near-copy

PROMPTS = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a photo of {}",
    "this is a photo of {}",
    "a picture of a {}",
    "a picture of {}",
    "this is a picture of {}",
    "an image of a {}",
    "a drawing of a {}",
    "a drawing of {}",
    "an icon of a {}",
    "an emoji of {}",
    "clip art of a {}",
)  # the first prompt is the bare caption


@dataclass(frozen=True)
class Pictograms:
    """A split: `rows[i]` describes `images[i]` by `caption`, `tags`, `group`, `source` and, if held out, `near`."""

    images: UInt8[np.ndarray, "n 64 64 4"]
    rows: list[dict[str, Any]]

    def subset(self, keep: Callable[[dict[str, Any]], bool]) -> "Pictograms":
        """Returns the rows for which `keep(row)` is true, with their images."""
        index = [i for i, row in enumerate(self.rows) if keep(row)]
        return Pictograms(self.images[index], [self.rows[i] for i in index])


def load_split(directory: str | Path, split: str) -> Pictograms:
    """Reads a split that `python -m research.pictograms.build` wrote.

    Raises:
      FileNotFoundError: if the split is not in `directory`.
      ValueError: if the numbers of images and rows differ.
    """
    directory = Path(directory)
    for name in (f"{split}.npz", f"{split}.json"):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory / name}: no such file; build the data with python -m research.pictograms.build {directory}"
            )
    with np.load(directory / f"{split}.npz") as arrays:
        images = arrays["images"]
    rows = json.loads((directory / f"{split}.json").read_text(encoding="utf-8"))
    if len(images) != len(rows):
        raise ValueError(
            f"{directory}: {split} must have one row per image, got {len(images)} images and {len(rows)} rows;"
            " build the data again"
        )
    return Pictograms(images, rows)
