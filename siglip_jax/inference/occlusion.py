"""Occlusion: how far the similarity of an image and a text drops where a part of the image is covered.

Zeiler and Fergus 2014, arXiv 1311.2901. No gradient is used, and no part of the model is opened: only its embeddings.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from siglip_jax._callbacks import Counter, OnProgress
from siglip_jax._progress import counted
from siglip_jax.inference.encoder import Encoder
from siglip_jax.inference.seen import Seen
from siglip_jax.inference.stream import Arrays, stacked


def windows_of(grid: tuple[int, int], size: int) -> Bool[np.ndarray, "windows rows columns"]:
    """Returns the patches that each position of a square window covers.

    Windows are half a window apart, and at the last row and column; together they cover every patch.

    Args:
      grid: rows and columns of patches.
      size: height and width of the window in patches, cut to the grid.
    """
    spans = []
    for side in grid:
        own = min(size, side)
        starts = sorted({*range(0, side - own + 1, max(own // 2, 1)), side - own})
        index = np.arange(side)
        spans.append(np.array([(index >= start) & (index < start + own) for start in starts]))
    down, across = spans
    return (down[:, None, :, None] & across[None, :, None, :]).reshape(-1, *grid)


def covered(seen: Seen, window: Bool[np.ndarray, "rows columns"], patch: int) -> Arrays:
    """Returns the inputs of the image tower with the patches of a window in the mean colour of the image.

    Args:
      seen: image as the tower gets it.
      window: the patches to cover.
      patch: height and width of a patch in pixels.
    """
    pixels = np.array(seen.arrays[0])
    if len(seen.arrays) > 1:  # patches, in rows of their pixels
        count = window.size
        values = pixels[:count].reshape(count, patch * patch, -1)
        pixels[:count][window.reshape(-1)] = np.tile(values.mean(axis=(0, 1)), patch * patch)
        return (pixels, *seen.arrays[1:])
    rows, columns = seen.grid
    area = pixels[: rows * patch, : columns * patch]
    area[window.repeat(patch, 0).repeat(patch, 1)] = area.mean(axis=(0, 1))
    return (pixels,)


def occlusion(
    encoder: Encoder,
    seen: Seen,
    image_embed: Float[np.ndarray, " width"],
    text_embeds: Float[np.ndarray, "texts width"],
    *,
    patch: int,
    size: int,
    batch_size: int | None = None,
    on_progress: OnProgress | None = None,
) -> Float[np.ndarray, "texts rows columns"]:
    """Returns the drop of the cosine similarity of each text, averaged over the windows that cover a patch.

    Args:
      encoder: image tower.
      seen: image as the tower gets it.
      image_embed: embedding of the whole image, L2-normalised.
      text_embeds: embeddings of the texts, L2-normalised.
      patch: height and width of a patch in pixels.
      size: height and width of the window in patches.
      batch_size: number of covered images per step; None: the encoder's own.
      on_progress: called with (covered images that were sent, their number); None: progress is not reported.
    """
    windows = windows_of(seen.grid, size)
    rows, counter = encoder.rows(batch_size), Counter(on_progress, len(windows))

    def stream() -> Iterator[Arrays]:
        for start in range(0, len(windows), rows):
            images = [covered(seen, window, patch) for window in windows[start : start + rows]]
            yield stacked(images)
            counter.add(len(images))

    embeds = encoder.run(counted(stream(), windows, "covered images"), rows)
    drops = text_embeds @ (image_embed - embeds).T  # (texts, windows)
    total = np.einsum("tw,wrc->trc", drops, windows.astype(np.float32))
    return (total / windows.sum(axis=0)).astype(np.float32)
