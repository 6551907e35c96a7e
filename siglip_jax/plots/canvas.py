"""Helpers of the plots: checks of output files, thumbnails, short labels, and a matplotlib `Figure` as bytes."""

import io
import os
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from siglip_jax._optional import import_optional
from siglip_jax.processing import load_image

MOST = 128  # rows or columns; the numbers of more would be illegible in an image of sensible size
FORMATS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")
IMAGE_FORMATS = (".png", ".jpg", ".jpeg", ".webp")
THUMBNAIL = 96  # width and height in pixels


def render(figure: Any, format: str = "png") -> bytes:
    """Returns a matplotlib `Figure` as the bytes of an image file, with all of its labels inside.

    Args:
      figure: the `Figure`.
      format: "png", "pdf", "svg", "jpg", "jpeg" or "webp".
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # letters that the font lacks become boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format=format, bbox_inches="tight", pad_inches=0.1)
    return buffer.getvalue()


def check_plot(path: str | os.PathLike[str] | None, rows: int, columns: int) -> None:
    """Checks that a plot can be drawn and written, before anything is computed.

    Args:
      path: file to write the plot to; None: the plot is not written.
      rows: number of images.
      columns: number of labels.

    Raises:
      FileNotFoundError: if the folder of `path` does not exist.
      ValueError: if matplotlib is not installed, `rows` or `columns` is not from 1 to 128, or `path` cannot be written
        or has an unknown ending.
    """
    import_optional("matplotlib", "a plot", "plot")
    if not 1 <= rows <= MOST or not 1 <= columns <= MOST:
        raise ValueError(f"a plot must have 1 to {MOST} images and labels, got {rows} images and {columns} labels")
    if path is not None:
        check_file(Path(path), FORMATS)


def check_file(path: Path, formats: Sequence[str]) -> None:
    """Checks that a plot can be written to a file.

    Args:
      path: file to write.
      formats: endings that are allowed, as in ".png".

    Raises:
      FileNotFoundError: if the folder of `path` does not exist.
      ValueError: if `path` has another ending, is a folder, or is in a folder that cannot be written to.
    """
    if path.suffix.lower() not in formats:
        raise ValueError(f"{path}: the ending of a plot must be one of {' '.join(formats)}, got {path.suffix!r}")
    if path.is_dir():
        raise ValueError(f"{path}: the plot must be written to a file, got a folder; add a name such as plot.png")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{path}: the folder of the plot must exist, got no such folder as {path.parent}; make it first"
        )
    if not os.access(path.parent, os.W_OK):
        raise ValueError(
            f"{path}: the folder of the plot must be writable, got {path.parent}, which is not; choose another"
        )


def thumbnail(image: Any, side: int = THUMBNAIL) -> UInt8[np.ndarray, "side side 3"]:
    """Returns an image on a white square.

    Args:
      image: path, URL, bytes, PIL image or array, as `load_image` takes it.
      side: largest width and height in pixels; smaller images are not enlarged.

    Returns:
      The centred image, (side, side, 3) uint8.
    """
    pil = load_image(image).convert("RGBA")
    pil.thumbnail((side, side))
    canvas = PIL.Image.new("RGBA", (max(pil.size),) * 2, "white")
    corner = tuple((side - own) // 2 for side, own in zip(canvas.size, pil.size, strict=True))
    canvas.alpha_composite(pil, corner)
    return np.asarray(canvas.convert("RGB"))


def drawable(text: str) -> str:
    """Returns a text with surrogates, which stand for bytes of a file name that are not UTF-8, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def shortened(label: str, width: int = 30, lines: int = 2) -> str:
    """Returns a label wrapped into lines; the last line ends in an ellipsis if the label is longer.

    Args:
      label: text to wrap; bytes of a file name that are not UTF-8, which fonts cannot draw, are written as escapes.
      width: largest number of characters in a line.
      lines: largest number of lines.
    """
    return "\n".join(textwrap.wrap(drawable(label), width, max_lines=lines, placeholder=" …"))
