"""Draws the example images that the package carries: 64 names of the held-out vendor, by lot.

    python -m research.pictograms.examples DATA OUT

The lot knows nothing of any model: it falls among the names of animals, food, places and things whose image is no
near-copy of a training image and whose name is plain enough for a file.
"""

import argparse
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from research.pictograms.dataset import NEAR_DUPLICATE, Pictograms, load_split
from siglip_jax._files import write_atomically

DESCRIPTION = "Draw by lot the example images that the package carries."
GROUPS = ("animals & nature", "food & drink", "travel & places", "objects")
COUNT = 64
SEED = 64


def draw(split: Pictograms, count: int = COUNT, seed: int = SEED) -> Pictograms:
    """`count` rows of `split` by lot among the fit ones, in the order of their captions.

    Raises:
      ValueError: fewer rows are fit.
    """
    fit = split.subset(
        lambda row: (
            row["group"] in GROUPS
            and row["near"] <= NEAR_DUPLICATE
            and re.fullmatch(r"[a-z]+( [a-z]+)*", row["caption"]) is not None
        )
    )
    if len(fit.rows) < count:
        raise ValueError(f"expected at least {count} images to draw from, found {len(fit.rows)}: build the data again")
    chosen = np.random.default_rng(seed).choice(len(fit.rows), count, replace=False)
    order = sorted(chosen, key=lambda i: fit.rows[i]["caption"])
    return Pictograms(fit.images[order], [fit.rows[i] for i in order])


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's text."""
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
