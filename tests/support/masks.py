"""Data sets of images with masks: drawings of the package side by side on a canvas."""

from pathlib import Path

import PIL.Image

from siglip_jax.assets import EXAMPLES

SIDE = 48  # pixels of a drawing


def write_masks(folder: Path, rows: list[tuple[str, ...]]) -> Path:
    """Writes a folder of class folders of masks: one image for each row of names of drawings, side by side."""
    (folder / "images").mkdir(parents=True)
    for number, names in enumerate(rows):
        size = (SIDE * len(names) + 5, SIDE + 3)  # the last pixels are of no class
        sheet = PIL.Image.new("RGB", size, "white")
        for i, name in enumerate(names):
            drawn = PIL.Image.open(EXAMPLES / f"{name}.png").convert("RGBA").resize((SIDE, SIDE))
            sheet.paste(drawn, (SIDE * i, 0), drawn)
            mask = PIL.Image.new("L", size)
            mask.paste(drawn.getchannel("A").point(lambda value: 200 * (value > 127)), (SIDE * i, 0))
            file = folder / "masks" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            mask.save(file)
        sheet.save(folder / "images" / f"{number}.png")
    return folder
