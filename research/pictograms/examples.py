"""Selects the example images of the package: 64 names of the held-out vendor, at random.

    python -m research.pictograms.examples DATA OUT

No model takes part in the selection. Candidates are animals, food, places and objects whose image is not a near-copy
of a training image and whose name is plain enough for a file name.
"""

import argparse
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from research.pictograms.dataset import NEAR_DUPLICATE, Pictograms, load_split
from siglip_jax._files import write_atomically

DESCRIPTION = "Select the example images of the package at random."
GROUPS = ("animals & nature", "food & drink", "travel & places", "objects")
COUNT = 64
SEED = 64


def draw(split: Pictograms, count: int = COUNT, seed: int = SEED) -> Pictograms:
    """Returns `count` random rows among the suitable ones of `split`, sorted by caption.

    Raises:
      ValueError: if fewer rows are suitable.
    """
    fit = split.subset(
        lambda row: (
            row["group"] in GROUPS
            and row["near"] <= NEAR_DUPLICATE
            and re.fullmatch(r"[a-z]+( [a-z]+)*", row["caption"]) is not None
        )
    )
    if len(fit.rows) < count:
        raise ValueError(f"suitable images must be at least {count}, got {len(fit.rows)}; build the data again")
    chosen = np.random.default_rng(seed).choice(len(fit.rows), count, replace=False)
    order = sorted(chosen, key=lambda i: fit.rows[i]["caption"])
    return Pictograms(fit.images[order], [fit.rows[i] for i in order])


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; see the module docstring."""
    parser = argparse.ArgumentParser("python -m research.pictograms.examples", description=DESCRIPTION)
    parser.add_argument("data", type=Path, help="directory written by research.pictograms.build")
    parser.add_argument("out", type=Path, help="directory for the images and labels.txt")
    options = parser.parse_args(arguments)
    examples = draw(load_split(options.data, "fluent3d"))
    options.out.mkdir(parents=True, exist_ok=True)
    for image, row in zip(examples.images, examples.rows, strict=True):
        png = io.BytesIO()
        Image.fromarray(image, "RGBA").save(png, format="PNG", optimize=True)
        write_atomically(options.out / f"{row['caption']}.png", png.getvalue())
    write_atomically(options.out / "labels.txt", "".join(f"{row['caption']}\n" for row in examples.rows).encode())


if __name__ == "__main__":
    main()
