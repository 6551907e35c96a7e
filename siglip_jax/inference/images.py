"""Embeddings of a stream of images: decoded in threads ahead of the device, with NaN for those that have none."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from siglip_jax._callbacks import OnUnreadable
from siglip_jax._progress import counted
from siglip_jax.inference.encoder import Encoder, NotFiniteError
from siglip_jax.inference.stream import Arrays, batches, in_threads


def embed_images(
    encoder: Encoder,
    prepare: Callable[[Any], Arrays],
    images: Iterable[Any],
    batch_size: int,
    *,
    workers: int,
    on_unreadable: OnUnreadable | None,
) -> Float[np.ndarray, "images embed"]:
    """Returns the embeddings of images, in their order.

    Args:
      encoder: image tower.
      prepare: function from an image to the inputs of the tower, without a batch axis; it runs in threads.
      images: iterable of images; it is read a few batches ahead.
      batch_size: largest number of images per step.
      workers: number of threads.
      on_unreadable: called with (index of the image, error) for an image that `prepare` cannot read, or whose embedding
        is not finite; its row becomes NaN. None: the error is raised.
    """
    places: list[int] = []  # of the rows among the images
    unreadable: list[int] = []
    rejected: list[int] = []

    def pixels() -> Iterator[Arrays]:
        futures = in_threads(prepare, images, workers=workers, ahead=max(2 * batch_size, workers))
        for position, future in enumerate(futures):
            try:
                row = future.result()
            except (OSError, ValueError) as error:
                if on_unreadable is None:
                    raise
                on_unreadable(position, error)
                unreadable.append(position)
            else:
                places.append(position)
                yield row

    def reject(row: int) -> None:
        error = NotFiniteError(f"images[{places[row]}]")
        if on_unreadable is None:
            raise error
        on_unreadable(places[row], error)
        rejected.append(row)

    stream = counted(batches(pixels(), batch_size), images, "images")
    rows = encoder.run(stream, batch_size, reject)
    rows[rejected] = np.nan
    if not unreadable:
        return rows
    every = np.full((len(rows) + len(unreadable), encoder.width), np.nan, np.float32)
    every[places] = rows
    return every
