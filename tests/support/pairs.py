"""Small data sets of images that differ by a rule, on disk."""

import json
from pathlib import Path

import numpy as np
import PIL.Image

COLOURS = {"red": (220, 40, 30), "green": (40, 200, 60), "blue": (40, 60, 220), "white": (240, 240, 240)}
FORMS = ("disc", "bar", "ring", "cross")


def picture(colour: str, form: str, rng: np.random.Generator, side: int = 40) -> PIL.Image.Image:
    """Draws one form in one colour, about the middle of a dark ground."""
    y, x = np.mgrid[0:side, 0:side]
    cx, cy = rng.uniform(0.45, 0.55, 2) * side
    dx, dy = x - cx, y - cy
    radius = rng.uniform(0.3, 0.38) * side
    distance = np.hypot(dx, dy)
    inside = {
        "disc": distance < radius,
        "bar": (np.abs(dy) < radius * 0.3) & (np.abs(dx) < radius * 1.2),
        "ring": (distance < radius * 1.2) & (distance > radius * 0.8),
        "cross": (np.minimum(np.abs(dx), np.abs(dy)) < radius * 0.25) & (np.maximum(np.abs(dx), np.abs(dy)) < radius),
    }[form]
    pixels = rng.integers(0, 40, (side, side, 3))
    pixels[inside] = np.array(COLOURS[colour])
    return PIL.Image.fromarray(pixels.astype(np.uint8))


def write_pairs(directory: Path, copies: int, seed: int = 0) -> Path:
    """Writes images of every colour and form with captions, and returns the JSON lines that list them."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = []
    for copy in range(copies):
        for colour in COLOURS:
            for form in FORMS:
                name = f"{colour}-{form}-{copy}.png"
                picture(colour, form, rng).save(directory / name)
                lines.append({"image": name, "captions": [f"a {colour} {form}", f"a photo of a {form} in {colour}"]})
    path = directory / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_classes(directory: Path, copies: int, seed: int = 0, colours: bool = False) -> Path:
    """Writes a folder for each form, or for each colour and form ("red disc"), and returns the folder of these."""
    rng = np.random.default_rng(seed)
    for form in FORMS:
        for colour in COLOURS:
            folder = directory / (f"{colour} {form}" if colours else form)
            folder.mkdir(parents=True, exist_ok=True)
            for copy in range(copies):
                picture(colour, form, rng).save(folder / f"{colour}-{copy}.png")
    return directory
