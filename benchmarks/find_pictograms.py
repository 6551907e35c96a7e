"""Whether the maps of `siglip_jax.explain` find the object of an image, on images where its place is known.

    python benchmarks/find_pictograms.py [--cases 200] [--json]

Each image is a pictogram of the examples, which the bundled model was not trained on, at a random place of a noisy
canvas; or two of them, of which the text names one. The text is the pictogram's name. A map finds it if the place that
`Explanation.centres` returns (the centre of mass of the map above half way from its median to its maximum) lies in the
bounding box of the pictogram.
"""

import argparse
import json
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

import siglip_jax
from siglip_jax.assets import EXAMPLES

NAMES = (EXAMPLES / "labels.txt").read_text(encoding="utf-8").splitlines()
METHODS = ("occlusion", "value", "attention", "raw")
KINDS = {  # (whether the canvas is wide, whether there are two)
    "one, square": (False, False),
    "one of two, wide, squashed": (True, True),
}


class Scene(NamedTuple):
    """An image of one pictogram or two.

    Attributes:
      image: the image, RGB.
      name: name of the pictogram that is asked for.
      box: its top, left, bottom and right, as shares of the height and width of the image.
    """

    image: PIL.Image.Image
    name: str
    box: tuple[float, float, float, float]


def scene(seed: int, wide: bool = False, two: bool = False) -> Scene:
    """Returns the image of a seed, with pictogram `seed` modulo 64.

    It is 35 to 55 % as high as a square canvas, and 50 to 75 % as high as a wide one.

    Args:
      seed: number of the image.
      wide: whether the canvas is twice as wide as high, and not square.
      two: whether there is another pictogram in the other half of the image.
    """
    random = np.random.default_rng(seed)
    height, width = 192, 384 if wide else 192
    colour, strength = random.uniform(0, 255, 3), random.uniform(10, 60)
    noise = colour + strength * random.standard_normal((height, width, 3))
    canvas = PIL.Image.fromarray(np.uint8(np.clip(noise, 0, 255)))
    places = [(0, width)]
    if two:
        places = [(0, width // 2), (width // 2, width)][:: 1 if random.integers(2) else -1]
    box = (0.0, 0.0, 0.0, 0.0)
    for number, (start, end) in reversed(list(enumerate(places))):
        name = NAMES[(seed + 29 * number) % len(NAMES)]
        side = round(height * (random.uniform(0.5, 0.75) if wide else random.uniform(0.35, 0.55)))
        with PIL.Image.open(EXAMPLES / f"{name}.png") as file:
            drawn = file.convert("RGBA").resize((side, side), PIL.Image.Resampling.LANCZOS)
        left, top = (int(random.integers(low, high - side + 1)) for low, high in ((start, end), (0, height)))
        canvas.paste(drawn, (left, top), drawn)
        x0, y0, x1, y1 = drawn.getchannel("A").getbbox()
        box = ((top + y0) / height, (left + x0) / width, (top + y1) / height, (left + x1) / width)
    return Scene(canvas, NAMES[seed % len(NAMES)], box)


def is_inside(place: Any, box: tuple[float, float, float, float]) -> bool:
    """Returns whether a place (y, x) lies in a box."""
    top, left, bottom, right = box
    return bool(top <= place[0] <= bottom and left <= place[1] <= right)


def measure(cases: int, kind: str, **options: Any) -> dict[str, float]:
    """Returns the share of images in which each method finds the pictogram, and that of the middle of the image.

    Args:
      cases: number of images.
      kind: one of `KINDS`.
      **options: arguments of `siglip_jax.explain`.
    """
    wide, two = KINDS[kind]
    siglip = siglip_jax.load()
    found: dict[str, list[bool]] = {name: [] for name in (*METHODS, "middle")}
    for seed in range(cases):
        image, name, box = scene(seed, wide, two)
        explanation = siglip_jax.explain(image, name, siglip, **options)
        for method in METHODS:
            found[method].append(is_inside(explanation.centres(method)[0], box))
        found["middle"].append(is_inside((0.5, 0.5), box))
    return {method: float(np.mean(each)) for method, each in found.items()}


def main() -> None:
    """Runs the command line; see the module docstring."""
    parser = argparse.ArgumentParser(description="Measure whether maps find a drawn object.")
    parser.add_argument("--cases", type=int, default=200, help="images of each kind (default: 200)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.json:
        found = {kind: measure(options.cases, kind) for kind in KINDS}
        print(json.dumps({"cases": options.cases, "found": found}, indent=2))
        return
    print(f"Share of {options.cases} images of each kind in which the map points into the box of the pictogram:\n")
    print(f"{'images':32}" + "".join(f"{name:>11}" for name in (*METHODS, "middle")), flush=True)
    for kind in KINDS:
        shares = measure(options.cases, kind)
        print(f"{kind:32}" + "".join(f"{share:>11.1%}" for share in shares.values()), flush=True)


if __name__ == "__main__":
    main()
