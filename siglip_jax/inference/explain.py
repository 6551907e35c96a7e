"""`explain`: which parts of an image speak for a text, by three methods that check each other."""

import dataclasses
import os
from typing import Any

import numpy as np
from jaxtyping import Float

from siglip_jax._callbacks import OnProgress
from siglip_jax._checks import check_choice, check_count
from siglip_jax.checkpoints.keymap import VISION
from siglip_jax.configs.towers import tower_config
from siglip_jax.inference.engine import ImageSource, Siglip, Texts
from siglip_jax.inference.labels import probabilities
from siglip_jax.inference.load import load
from siglip_jax.inference.occlusion import occlusion as occlusion_maps
from siglip_jax.inference.seen import Box, between_cells, encoder_at, see, states_of
from siglip_jax.inference.stream import as_texts
from siglip_jax.inference.towers import check_whole
from siglip_jax.processing import load_image

METHODS = ("occlusion", "value", "attention", "raw")


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """Maps of an image: where the model looks, and which parts speak for each text; `explain` returns one.

    A map has one number per patch, by row and column from the top left; the patches divide the part `box` of the image
    evenly. `resized` returns maps of the size of the image.

    Attributes:
      texts: the texts, M strings.
      method: name of the maps that `maps` returns: "occlusion", "value", "attention" or "raw".
      attention: weights of the pooling head, (heads, rows, columns) float32; each head's sum to 1. They are the same
        for all texts: where the head looks, whatever is asked.
      value: cosine similarity of each text with each patch, sent through the value projection, the out projection and
        the MLP of the pooling head as if it alone were attended to, (M, rows, columns) float32.
      raw: cosine similarity of each text with the last hidden state of each patch, (M, rows, columns) float32. It is
        no explanation: nothing in training makes these vectors similar to texts, and often they are least similar
        where the object is.
      occlusion: drop of the cosine similarity of each text where a patch is covered with the mean colour of the image,
        averaged over the windows that cover it, (M, rows, columns) float32; None if it was not computed.
      similarity: cosine similarity of each text with the whole image, (M,) float32.
      scores: probability that each text describes the image, (M,) float32.
      box: top, left, bottom and right of the part of the image that the maps cover, as shares of its height and width.
        It is (0, 0, 1, 1) unless the model's processor crops or pads, or its image is no whole number of patches.

    Example:
      >>> import siglip_jax
      >>> explanation = siglip_jax.explain(siglip_jax.assets.EXAMPLES / "horse.png", ["horse", "lemon"])
      >>> explanation.maps.shape, explanation.attention.shape, explanation.resized(64, 96).shape
      ((2, 8, 8), (6, 8, 8), (2, 64, 96))
      >>> explanation.similarity[0] > explanation.similarity[1]
      np.True_
    """

    texts: tuple[str, ...]
    method: str
    attention: Float[np.ndarray, "heads rows columns"]
    value: Float[np.ndarray, "texts rows columns"]
    raw: Float[np.ndarray, "texts rows columns"]
    occlusion: Float[np.ndarray, "texts rows columns"] | None
    similarity: Float[np.ndarray, " texts"]
    scores: Float[np.ndarray, " texts"]
    box: Box

    @property
    def maps(self) -> Float[np.ndarray, "texts rows columns"]:
        """The maps of `method`, one per text, (M, rows, columns) float32."""
        return self.maps_of(self.method)

    def maps_of(self, method: str) -> Float[np.ndarray, "texts rows columns"]:
        """Returns the maps of a method, one per text.

        Args:
          method: "occlusion", "value", "raw", or "attention" for the mean over the heads, the same for each text.

        Returns:
          (M, rows, columns) float32.

        Raises:
          ValueError: if there is no such method, or its maps were not computed.
        """
        check_choice("method", method, METHODS)
        if method == "attention":
            return np.repeat(self.attention.mean(axis=0, keepdims=True), len(self.texts), axis=0)
        found = getattr(self, method)
        if found is None:
            raise ValueError("method must be one that was computed, got 'occlusion'; call explain(occlusion=True)")
        return found

    def resized(self, height: int, width: int, method: str | None = None) -> Float[np.ndarray, "texts height width"]:
        """Returns maps of the size of an image, interpolated between the centres of the patches.

        Args:
          height: height of the result in pixels, such as that of the image.
          width: width of the result in pixels.
          method: name of the maps, as in `maps_of`; None: `self.method`.

        Returns:
          (M, height, width) float32; NaN outside the part of the image that the model sees.

        Raises:
          ValueError: if there is no such method, its maps were not computed, or a side is below 1.
        """
        check_count("height", height)
        check_count("width", width)
        maps = self.maps_of(method or self.method)
        top, left, bottom, right = self.box
        down, across = (
            _between(*it) for it in ((height, maps.shape[1], top, bottom), (width, maps.shape[2], left, right))
        )
        return np.einsum("hr,trc,wc->thw", down, maps, across).astype(np.float32)

    def centres(self, method: str | None = None) -> Float[np.ndarray, "texts 2"]:
        """Returns the place that each map points to: the centre of mass of its upper half.

        That is what exceeds the middle between the median and the maximum of the map.

        Args:
          method: name of the maps, as in `maps_of`; None: `self.method`.

        Returns:
          (M, 2) float32: y and x as shares of the height and width of the image, from its top left.

        Raises:
          ValueError: if there is no such method, or its maps were not computed.
        """
        maps = self.maps_of(method or self.method).astype(np.float64)
        middle, high = np.median(maps, axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
        mass = np.where(high > middle, np.maximum(maps - (middle + high) / 2, 0), maps == high)
        mass /= mass.sum(axis=(1, 2), keepdims=True)
        _, rows, columns = maps.shape
        top, left, bottom, right = self.box
        y = top + (bottom - top) * (np.arange(rows) + 0.5) / rows
        x = left + (right - left) * (np.arange(columns) + 0.5) / columns
        return np.stack([mass.sum(axis=2) @ y, mass.sum(axis=1) @ x], axis=1).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as a dictionary that JSON can hold, with the places that the maps point to."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            found[field.name] = value.tolist() if isinstance(value, np.ndarray) else value
        return found | {"centres": self.centres().tolist()}


def _between(length: int, cells: int, start: float, end: float) -> Float[np.ndarray, "length cells"]:
    """Returns the weights of `between_cells`, NaN for pixels outside the part."""
    weights, place = between_cells(length, cells, start, end), (np.arange(length) + 0.5) / length
    weights[(place < start) | (place > end)] = np.nan
    return weights


def explain(
    image: ImageSource,
    texts: Texts,
    model: str | os.PathLike[str] | Siglip | None = None,
    *,
    method: str = "occlusion",
    occlusion: bool = True,
    own_aspect: bool = False,
    window: int | None = None,
    batch_size: int | None = None,
    timeout: float = 10.0,
    on_progress: OnProgress | None = None,
) -> Explanation:
    """Returns maps of which parts of an image speak for texts.

    Occlusion covers a part of the image and measures how far the similarity drops: it asks the model itself, at the
    price of one image for each place. The value path takes a single pass. Where both agree, the map can be trusted.

    Args:
      image: path, URL, bytes, PIL image or array (height, width, channels).
      texts: one string or an iterable of M strings.
      model: model as `load` returns it, or the directory, weights file or Hub name of one; None: the bundled model.
      method: maps that `Explanation.maps` returns: "occlusion", "value", "attention" or "raw".
      occlusion: whether to compute the maps of occlusion.
      own_aspect: whether a model of fixed resolution gets the image in its own proportions, with as many patches as it
        has positions and its position table resized to them, rather than squashed to a square as in training. Models
        of variable resolution always keep the proportions.
      window: height and width of the covered part in patches; None: an eighth of the shorter side of the grid.
      batch_size: number of covered images per step; None: chosen for the device.
      timeout: seconds to wait for the download of an image given as a URL.
      on_progress: called with (covered images that were sent, their number); None: a call of more than two seconds
        shows its progress on a terminal.

    Returns:
      An `Explanation`.

    Raises:
      FileNotFoundError: if the image or the model does not exist.
      ValueError: if the image cannot be read, there are no texts, the model lacks a tower or its pooling head, the
        method is unknown or not computed, or a number is below 1.

    Example:
      >>> import siglip_jax
      >>> explanation = siglip_jax.explain(siglip_jax.assets.EXAMPLES / "horse.png", "horse")
      >>> explanation.maps.shape, explanation.method
      ((1, 8, 8), 'occlusion')
    """
    check_choice("method", method, METHODS)
    check_count("window", window)
    if method == "occlusion" and not occlusion:
        raise ValueError("method must be one that is computed, got 'occlusion'; leave out occlusion=False")
    if not (found := as_texts(texts)):
        raise ValueError("texts must not be empty, got none; pass at least one string")
    siglip = model if isinstance(model, Siglip) else load(model)
    check_whole(siglip.model)
    processor: Any = siglip.processor.image_processor
    loaded = load_image(
        image, timeout=timeout, max_pixels=siglip.max_pixels, input_data_format=processor.input_data_format
    )
    seen = see(siglip, loaded, own_aspect)
    states = states_of(siglip, tuple(array[None] for array in seen.arrays), own_aspect)
    text_embeds, encoder = siglip.encode_text(found), encoder_at(siglip, own_aspect)
    (image_embed,) = encoder.run(iter([tuple(array[None] for array in seen.arrays)]), 1)
    rows, columns = seen.grid

    def in_grid(patches: Any) -> np.ndarray:
        return np.asarray(patches, np.float32)[:, : rows * columns].reshape(-1, rows, columns)

    similarity = text_embeds @ image_embed
    drops = None
    if occlusion:
        patch = tower_config(siglip.config, VISION).patch_size
        size = window or max(round(min(seen.grid) / 8), 1)
        options: Any = {"patch": patch, "size": size, "batch_size": batch_size, "on_progress": on_progress}
        drops = occlusion_maps(encoder, seen, image_embed, text_embeds, **options)
    return Explanation(
        texts=found,
        method=method,
        attention=in_grid(states.attention[0]),
        value=in_grid(text_embeds @ np.asarray(states.alone[0]).T),
        raw=in_grid(text_embeds @ np.asarray(states.raw[0]).T),
        occlusion=drops,
        similarity=similarity,
        scores=probabilities(similarity[None], siglip.temperature, siglip.logit_bias)[0],
        box=seen.box,
    )
