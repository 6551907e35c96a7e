"""Builds test sets of unseen drawing styles, to measure how far the bundled model generalises.

    python -m research.pictograms.build DATA
    python -m research.pictograms.other_styles DATA [--photographs DIR]

Writes into DATA, in the layout of `dataset`, a split for each style of `sources.OTHER_STYLES`: flat drawings with an
outline (`openmoji`), glyphs of one colour (`emojione-monotone`, `fluent-emoji-high-contrast`) and icons of thin lines
(`tabler`, those with the name of an emoji). With photographs it also writes `on_photographs`: the Fluent 3D images,
scaled down, on crops of the photographs. Needs the packages of the README.
"""

import argparse
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from research.pictograms.build import SIZE, likeness, likeness_features, render, write_split
from research.pictograms.dataset import Pictograms, load_split
from research.pictograms.sources import OTHER_STYLES, Source, emoji_concepts, fetch_styles, line_icons, vendor_images

DESCRIPTION = "Fetch and render pictograms in styles that the bundled model is evaluated on but not trained on."
ON_PHOTOGRAPHS = "on_photographs"
PHOTOGRAPH_SUFFIXES = {".jpg", ".jpeg", ".png"}
LEAST_CROP = 100  # pixels; smallest crop of a photograph
SMALLEST, LARGEST = 44, 60  # pixels; size of an image on a photograph


def style_images(downloads: Path, style: str, concepts: list[dict[str, Any]]) -> list[Source]:
    """Returns the drawings of a style without flags, with black in place of `currentColor`."""
    found = line_icons if style == "tabler" else vendor_images
    return [
        Source(source.row, source.image.replace("currentColor", "black"))  # type: ignore[arg-type]
        for source in found(downloads, style, concepts)
        if source.row["group"] != "flags"
    ]


def on_photographs(split: Pictograms, photographs: list[Image.Image], seed: int = 0) -> Pictograms:
    """Returns every image of `split`, scaled down, at a random place on a random square crop of a random photograph.

    Raises:
      ValueError: if there is no photograph, or one is too small.
    """
    small = [photograph.size for photograph in photographs if min(photograph.size) <= LEAST_CROP]
    if small or not photographs:
        raise ValueError(f"photographs must be of more than {LEAST_CROP} pixels, got {small or 'none'}; pass others")
    rng = np.random.default_rng(seed)
    images = []
    for image in split.images:
        photograph = photographs[rng.integers(len(photographs))]
        side = int(rng.integers(LEAST_CROP, min(photograph.size)))
        x, y = (int(rng.integers(0, length - side + 1)) for length in photograph.size)
        ground = photograph.crop((x, y, x + side, y + side)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        ground = ground.convert("RGBA")
        size = int(rng.integers(SMALLEST, LARGEST + 1))
        pasted = Image.fromarray(image, "RGBA").convert("RGBa").resize((size, size), Image.Resampling.BICUBIC)
        place = int(rng.integers(0, SIZE - size + 1)), int(rng.integers(0, SIZE - size + 1))
        ground.alpha_composite(pasted.convert("RGBA"), place)
        images.append(np.asarray(ground))
    return Pictograms(np.stack(images), split.rows)


def build(data: Path, downloads: Path, photographs: Path | None = None, processes: int | None = None) -> None:
    """Fetches missing packages into `downloads` and writes the splits to `data`.

    Raises:
      FileNotFoundError: if npm is not installed, or `data` lacks the splits of `research.pictograms.build`.
      ValueError: if a download failed, or there are no suitable photographs.
    """
    train, fluent = load_split(data, "train"), load_split(data, "fluent3d")
    fetch_styles(downloads)
    features, concepts = likeness_features(train.images), emoji_concepts(downloads)
    for style in OTHER_STYLES:
        sources = style_images(downloads, style, concepts)
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            drawn = pool.map(render, sources, chunksize=32)
        kept = [(source.row, image) for source, image in zip(sources, drawn, strict=True) if image is not None]
        images = np.stack([image for _, image in kept])
        near = likeness(images, features)
        rows = [row | {"near": round(float(v), 4)} for (row, _), v in zip(kept, near, strict=True)]
        write_split(data, style, rows, images)
    if photographs is not None:
        paths = sorted(path for path in photographs.iterdir() if path.suffix.lower() in PHOTOGRAPH_SUFFIXES)
        split = on_photographs(fluent, [Image.open(path).convert("RGB") for path in paths])
        write_split(data, ON_PHOTOGRAPHS, split.rows, split.images)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; see the module docstring."""
    parser = argparse.ArgumentParser("python -m research.pictograms.other_styles", description=DESCRIPTION)
    parser.add_argument("data", type=Path, help="directory written by research.pictograms.build")
    parser.add_argument("--downloads", type=Path, help="directory of the downloaded packages (default: DATA/downloads)")
    parser.add_argument("--photographs", type=Path, help="directory of photographs to use as backgrounds")
    parser.add_argument("--processes", type=int, help="number of renderers (default: one per core)")
    options = parser.parse_args(arguments)
    build(options.data, options.downloads or options.data / "downloads", options.photographs, options.processes)


if __name__ == "__main__":
    main()
