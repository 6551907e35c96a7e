"""A contact sheet: thumbnails in rows, each with lines of text below it. Needs Pillow only."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from siglip_jax._files import write_atomically
from siglip_jax.plots.canvas import thumbnail

COLUMNS = 5
SIDE, GAP, LINE = 180, 12, 16  # pixels: of a thumbnail, between cells, from line to line
_SIZE = 13  # of the letters, pixels


def contact_sheet(images: Sequence[Any], captions: Sequence[Sequence[str]], title: str = "") -> PIL.Image.Image:
    """Draws images, at most `COLUMNS` in a row, with their captions.

    Args:
      images: as anything `load_image` takes.
      captions: lines of each image, as many for each; what is too long loses its beginning.
      title: a line above all.

    Raises:
      OSError, ValueError: if an image cannot be read.
    """
    lines = max((len(caption) for caption in captions), default=0)
    columns = min(COLUMNS, max(len(images), 1))
    width, height = SIDE + GAP, SIDE + lines * LINE + GAP
    top = GAP + (LINE + GAP if title else 0)
    sheet = PIL.Image.new("RGB", (columns * width + GAP, -(-len(images) // columns) * height + top), "white")
    draw, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(_SIZE)
    draw.text((GAP, GAP), _fitting(title, font, sheet.width - 2 * GAP), "black", font)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = GAP + i % columns * width, top + i // columns * height
        sheet.paste(PIL.Image.fromarray(thumbnail(image, SIDE)).resize((SIDE, SIDE)), (x, y))
        for number, line in enumerate(caption):
            draw.text((x, y + SIDE + number * LINE), _fitting(line, font, SIDE), "black" if number else "#1a6fb0", font)
    return sheet


def save_contact_sheet(sheet: PIL.Image.Image, path: Path) -> None:
    """Writes an image, in the format of the ending, which is one of `canvas.IMAGE_FORMATS`."""
    buffer = io.BytesIO()
    sheet.save(buffer, PIL.Image.registered_extensions()[path.suffix.lower()])
    write_atomically(path, buffer.getvalue())


def _fitting(text: str, font: Any, width: int) -> str:
    """Returns as much of the end of a text as is not wider than that: a path differs there."""
    text = text.replace("\n", " ")
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("…" + text) > width:
        text = text[1:]
    return "…" + text
