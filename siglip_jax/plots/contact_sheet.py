"""A contact sheet: rows of thumbnails with lines of text below each. Needs Pillow only."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from siglip_jax._files import write_atomically
from siglip_jax.plots.canvas import drawable, thumbnail

COLUMNS = 5
SIDE, GAP, LINE = 180, 12, 16  # pixels: side of a thumbnail, gap between cells, height of a line
_SIZE = 13  # font size in pixels


def contact_sheet(images: Sequence[Any], captions: Sequence[Sequence[str]], title: str = "") -> PIL.Image.Image:
    """Draws thumbnails of images with captions, five in a row.

    Args:
      images: paths, URLs, bytes, PIL images or arrays, as `siglip_jax.processing.load_image` takes them.
      captions: lines of text below each image; a line that is too long loses its beginning, because paths differ at
        their end.
      title: line above all images, which loses its end if it is too long; "": none.

    Returns:
      The contact sheet, an RGB image.

    Raises:
      OSError: if an image does not exist.
      ValueError: if an image cannot be read, or there are not as many captions as images.

    Example:
      >>> import siglip_jax
      >>> names = ["horse", "lemon", "church"]
      >>> images = [siglip_jax.assets.EXAMPLES / f"{name}.png" for name in names]
      >>> contact_sheet(images, [[name] for name in names], title="examples").size
      (588, 248)
    """
    lines = max((len(caption) for caption in captions), default=0)
    columns = min(COLUMNS, max(len(images), 1))
    width, height = SIDE + GAP, SIDE + lines * LINE + GAP
    top = GAP + (LINE + GAP if title else 0)
    sheet = PIL.Image.new("RGB", (columns * width + GAP, -(-len(images) // columns) * height + top), "white")
    draw, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(_SIZE)
    draw.text((GAP, GAP), _fitting(title, font, sheet.width - 2 * GAP, end=True), "black", font)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = GAP + i % columns * width, top + i // columns * height
        sheet.paste(PIL.Image.fromarray(thumbnail(image, SIDE)).resize((SIDE, SIDE)), (x, y))
        for number, line in enumerate(caption):
            draw.text((x, y + SIDE + number * LINE), _fitting(line, font, SIDE), "black" if number else "#1a6fb0", font)
    return sheet


def save_contact_sheet(sheet: PIL.Image.Image, path: Path) -> None:
    """Writes a contact sheet to a file, in the format that the file's ending names.

    The file is written under a temporary name and renamed, so that it is never incomplete.

    Args:
      sheet: image as from `contact_sheet`.
      path: file to write, ending in .png, .jpg, .jpeg or .webp.

    Raises:
      OSError: if the file cannot be written.

    Example:
      >>> import tempfile
      >>> sheet = contact_sheet([PIL.Image.new("RGB", (8, 8), "red")], [["red"]])
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_contact_sheet(sheet, Path(folder, "sheet.png"))
      ...     [file.name for file in Path(folder).iterdir()]
      ['sheet.png']
    """
    buffer = io.BytesIO()
    sheet.save(buffer, PIL.Image.registered_extensions()[path.suffix.lower()])
    write_atomically(path, buffer.getvalue())


def _fitting(text: str, font: Any, width: int, end: bool = False) -> str:
    """Returns a text cut to `width` pixels, at its end or, because paths differ at their end, at its beginning."""
    text = drawable(text).replace("\n", " ")
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("…" + text) > width:
        text = text[:-1] if end else text[1:]
    return text + "…" if end else "…" + text
