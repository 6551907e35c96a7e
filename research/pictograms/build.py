"""Builds the data of the bundled model: 11,158 pictograms with captions, deterministically, in about a minute.

    python -m research.pictograms.build OUT [--downloads DIR]

Writes, for the splits `train`, `fluent3d` and `clipart_test` (the last two held out), `{split}.npz` with `images`
(N, 64, 64, 4) uint8, straight alpha, and `{split}.json` with one row per image. Held-out rows have `near`, the
similarity to the closest training image: drop those above 0.95 for an accuracy without near-copies. Needs the packages
of the README.
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from research.pictograms.sources import (
    VENDORS,
    Source,
    clip_art_images,
    emoji_concepts,
    fetch,
    held_out_images,
    vendor_images,
)
from siglip_jax._files import write_atomically, written_aside

DESCRIPTION = "Fetch and render the pictograms that the bundled model is trained and evaluated on."
SIZE = 64  # pixels, both sides
MARGIN = 0.04  # on each side, as a fraction of the longer side
VISIBLE = 8  # alpha above which a pixel counts as drawn
PIXELS_PER_UNIT = {"pt": 1.25, "mm": 3.543307, "cm": 35.43307, "pc": 15.0, "in": 90.0, "px": 1.0}  # at 90 dpi

RgbaImage = UInt8[np.ndarray, "64 64 4"]
RgbaImages = UInt8[np.ndarray, "n 64 64 4"]


def thumbnail(image: Image.Image) -> RgbaImage | None:
    """Crops to the drawing, centres it on a transparent square with a margin, and scales; None if nothing is drawn."""
    image = image.convert("RGBA")
    drawn = np.asarray(image)[..., 3] > VISIBLE
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    if not rows.size:
        return None
    image = image.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    side = int(round(max(image.size) * (1 + 2 * MARGIN)))
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.convert("RGBa").resize((SIZE, SIZE), Image.Resampling.LANCZOS).convert("RGBA"))


def in_pixels(svg: str) -> str:
    """Rewrites the size of an SVG in pixels, with a viewBox: the renderer rejects physical units without one."""
    root = re.search(r"<svg\b[^>]*>", svg, re.DOTALL)
    if root is None:
        return svg
    tag, size = root[0], []
    for side in ("width", "height"):
        length = re.search(rf"\s{side}\s*=\s*[\"']\s*([\d.eE+-]+)\s*([a-z%]*)\s*[\"']", tag)
        if length and length[2] != "%":
            size.append(float(length[1]) * PIXELS_PER_UNIT.get(length[2], 1.0))
    if len(size) < 2:
        number, gap = r"([\d.eE]+)", r"[\s,]+"
        box = re.search(rf"viewBox\s*=\s*[\"']\s*[-\d.eE]+{gap}[-\d.eE]+{gap}{number}{gap}{number}", tag)
        size = [float(box[1]), float(box[2])] if box else [1000.0, 1000.0]
    width, height = size
    box = "" if "viewBox" in tag else f' viewBox="0 0 {width} {height}"'
    rest = re.sub(r"\s(width|height)\s*=\s*(\"[^\"]*\"|'[^']*')", "", tag)[len("<svg") :]
    return f'{svg[: root.start()]}<svg width="{width:g}" height="{height:g}"{box}{rest}{svg[root.end() :]}'


def render(source: Source) -> RgbaImage | None:
    """Renders a source; returns None if it cannot be rendered or is empty."""
    import resvg_py

    try:
        if isinstance(source.image, bytes):
            return thumbnail(Image.open(io.BytesIO(source.image)))
        if source.row["source"] == "openclipart":
            drawn = resvg_py.svg_to_bytes(svg_string=in_pixels(source.image), width=256)
        else:
            drawn = resvg_py.svg_to_bytes(svg_string=source.image, width=128, height=128)
        return thumbnail(Image.open(io.BytesIO(bytes(drawn))))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a panic of the renderer is not an Exception
        return None


def likeness_features(images: RgbaImages) -> Float[np.ndarray, "n 768"]:
    """Returns 16 x 16 mean colours on white, centred and normalised; their cosines find near-copies."""
    scaled = images.astype(np.float32)
    alpha = scaled[..., 3:] / 255
    on_white = scaled[..., :3] * alpha + 255 * (1 - alpha)
    cells = on_white.reshape(len(images), 16, 4, 16, 4, 3).mean(axis=(2, 4)).reshape(len(images), -1)
    cells -= cells.mean(axis=1, keepdims=True)
    return cells / np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-6)


def likeness(images: RgbaImages, train: Float[np.ndarray, "m 768"]) -> Float[np.ndarray, " n"]:
    """Returns the largest cosine of each image, or of its mirror image, to a training image."""
    return np.maximum(*((likeness_features(x) @ train.T).max(axis=1) for x in (images, images[:, :, ::-1])))


def split_clip_art(sources: list[Source], images: list[RgbaImage | None]) -> tuple[list[Any], list[Any]]:
    """Drops unrendered and duplicate drawings and holds out the first tenth of the rest; returns (train, test)."""
    different = {}
    for source, image in zip(sources, images, strict=True):
        if image is not None:
            different.setdefault(image.tobytes(), (source.row, image))
    kept = list(different.values())
    return kept[len(kept) // 10 :], kept[: len(kept) // 10]


def write_split(directory: Path, split: str, rows: list[dict[str, Any]], images: RgbaImages) -> str:
    """Writes a split atomically and returns the hash of its rows and pixels."""
    with written_aside(directory / f"{split}.npz") as aside, open(aside, "wb") as out:
        np.savez_compressed(out, images=images)
    text = json.dumps(rows, ensure_ascii=False).encode()
    write_atomically(directory / f"{split}.json", text)
    digest = hashlib.sha256(text + images.tobytes()).hexdigest()
    captions = len({row["caption"] for row in rows})
    print(f"{split:13s} {len(images):5d} images {captions:5d} captions  sha256 {digest[:16]}", flush=True)
    return digest


def build(out: Path, downloads: Path, processes: int | None = None) -> None:
    """Fetches missing packages into `downloads`, renders everything and writes the three splits to `out`.

    Raises:
      FileNotFoundError: if npm or apt-get is not installed.
      ValueError: if a download failed.
    """
    fetch(downloads)
    out.mkdir(parents=True, exist_ok=True)
    concepts = emoji_concepts(downloads)
    emoji = [source for vendor in VENDORS for source in vendor_images(downloads, vendor, concepts)]
    clip_art = clip_art_images(downloads)
    random.Random(0).shuffle(clip_art)
    held_out = held_out_images(downloads, concepts)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:  # a forked process could inherit a held lock
        drawn = pool.map(render, emoji + clip_art + held_out, chunksize=32)

    def pairs(sources: list[Source], images: list[RgbaImage | None]) -> list[Any]:
        return [(s.row, p) for s, p in zip(sources, images, strict=True) if p is not None]

    a, b = len(emoji), len(emoji) + len(clip_art)
    clip_art_train, clip_art_test = split_clip_art(clip_art, drawn[a:b])
    train = pairs(emoji, drawn[:a]) + clip_art_train
    train_images = np.stack([image for _, image in train])
    write_split(out, "train", [row for row, _ in train], train_images)
    features = likeness_features(train_images)
    for split, found in (("clipart_test", clip_art_test), ("fluent3d", pairs(held_out, drawn[b:]))):
        images = np.stack([image for _, image in found])
        near = likeness(images, features)
        rows = [row | {"near": round(float(v), 4)} for (row, _), v in zip(found, near, strict=True)]
        write_split(out, split, rows, images)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; see the module docstring."""
    parser = argparse.ArgumentParser("python -m research.pictograms.build", description=DESCRIPTION)
    parser.add_argument("out", type=Path, help="directory for the data set")
    parser.add_argument("--downloads", type=Path, help="directory of the downloaded packages (default: OUT/downloads)")
    parser.add_argument("--processes", type=int, help="number of renderers (default: one per core)")
    options = parser.parse_args(arguments)
    build(options.out, options.downloads or options.out / "downloads", options.processes)


if __name__ == "__main__":
    main()
