"""What the plots share: files that can be drawn into, thumbnails, short labels, and figures as bytes."""

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

MOST = 128  # rows or columns: beyond, the numbers could not be read in any image of sensible size
FORMATS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")
IMAGE_FORMATS = (".png", ".jpg", ".jpeg", ".webp")
THUMBNAIL = 96  # pixels


def render(figure: Any, format: str = "png") -> bytes:
    """Returns a figure as the bytes of a file, with its labels inside."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # letters that the font lacks become boxes; no news for whoever wrote the labels
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format=format, bbox_inches="tight", pad_inches=0.1)
    return buffer.getvalue()


def check_plot(path: str | os.PathLike[str] | None, rows: int, columns: int) -> None:
    """Refuses what cannot be drawn before anything is computed.

    Raises:
      FileNotFoundError: if the folder of `path` is not there.
      ValueError: if matplotlib is missing, there is nothing or too much to draw, or `path` has an unknown ending.
    """
    import_optional("matplotlib", "a plot", "plot")
    if not 1 <= rows <= MOST or not 1 <= columns <= MOST:
        raise ValueError(f"a plot shows 1 to {MOST} images and labels, got {rows} images and {columns} labels")
    if path is not None:
        check_file(Path(path), FORMATS)


def check_file(path: Path, formats: Sequence[str]) -> None:
    """Refuses a file that cannot be drawn into; raises what `check_plot` does."""
    if path.suffix.lower() not in formats:
        raise ValueError(f"{path}: expected a plot ending in one of {' '.join(formats)}, found {path.suffix!r}")
    if path.is_dir():
        raise ValueError(f"{path}: expected a file to write the plot to, found a folder; add a name such as plot.png")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: no such folder as {path.parent} to write the plot to; make it first")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path}: expected a folder that can be written to, found {path.parent}; choose another")


def thumbnail(image: Any, side: int = THUMBNAIL) -> UInt8[np.ndarray, "side side 3"]:
    """Returns an image, on white, in the middle of a square of at most `side` pixels."""
    pil = load_image(image).convert("RGBA")
    pil.thumbnail((side, side))
    canvas = PIL.Image.new("RGBA", (max(pil.size),) * 2, "white")
    corner = tuple((side - own) // 2 for side, own in zip(canvas.size, pil.size, strict=True))
    canvas.alpha_composite(pil, corner)
    return np.asarray(canvas.convert("RGB"))


def shortened(label: str, width: int = 30, lines: int = 2) -> str:
    """Returns a label broken into lines, the last of which ends in dots where it was longer."""
    return "\n".join(textwrap.wrap(label, width, max_lines=lines, placeholder=" …"))
