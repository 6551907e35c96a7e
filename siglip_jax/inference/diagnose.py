"""`diagnose`: what an image tower does whatever the image, which causes hot spots at fixed places.

Robot policies and other models on top of a SigLIP tower look at its patches; an outlier in its position table, a patch
that the pooling head always attends to, or a token of very large norm is then seen in every image at the same place.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from math import isqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from siglip_jax import models
from siglip_jax._callbacks import Counter, OnProgress
from siglip_jax._files import MAX_PIXELS
from siglip_jax._progress import counted
from siglip_jax.assets import BUNDLED_MODEL, EXAMPLES
from siglip_jax.checkpoints.keymap import VISION
from siglip_jax.checkpoints.read import read_contents
from siglip_jax.configs.towers import tower_config
from siglip_jax.inference.engine import ImageSource, Siglip
from siglip_jax.inference.load import load
from siglip_jax.inference.seen import pooling_weights, see, tower_output
from siglip_jax.inference.stream import Arrays, batches, in_threads, padded
from siglip_jax.inference.towers import features
from siglip_jax.models.naflex import VariableResolution
from siglip_jax.models.pretrained import PretrainedModule
from siglip_jax.processing import SiglipProcessor, load_image
from siglip_jax.processing.beside import published_settings
from siglip_jax.processing.processor import Missing, image_processor_class

TIMES = 3.0  # a norm of more than this many medians is large, a share of attention of this many even shares is high
STEADY = 0.5  # attention that varies by less than this share of its mean is the same whatever the image
_NAMED = 5  # places that a sentence names


@dataclasses.dataclass(frozen=True)
class Spot:
    """A patch that stands out.

    Attributes:
      row: row of the patch, from 0 at the top.
      column: column of the patch, from 0 at the left.
      times: its norm as a multiple of the median norm, or its attention as a multiple of an even share.
      layer: layer whose output it is, 0 for the embeddings; None outside of layers.
      images: share of the images in which it stands out; None where it is the same for all images.

    Example:
      >>> Spot(row=0, column=13, times=17.4).times
      17.4
    """

    row: int
    column: int
    times: float
    layer: int | None = None
    images: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosis:
    """What an image tower does whatever the image; `diagnose` returns one.

    Attributes:
      model: name of the model as it was given, or its class.
      images: number of images.
      position_norms: norm of each entry of the position table, (rows, columns) float32.
      position_outliers: entries of the table with a norm of more than three times the median, the largest first.
      attention: attention of the pooling head to each patch, averaged over heads and images, (rows, columns) float32,
        which sums to 1; None without a pooling head.
      attention_spread: standard deviation of the attention over the images, (rows, columns) float32; None without a
        pooling head.
      fixed_share: share of the variance of the attention, over patches and images, that is the same in all images: 0
        if the head follows the image only, 1 if it looks at the same places whatever the image; None without a head.
      fixed_patches: patches that get more than three times an even share of the attention and vary by less than half
        of it over the images, those of most attention first.
      median_norms: median norm of the tokens of an image, averaged over the images, (layers + 1,) float32; the first
        entry is that of the embeddings.
      largest_norms: largest norm of a token as a multiple of the median of its image, (layers + 1,) float32.
      large_shares: share of the tokens with a norm of more than three times the median of their image, (layers + 1,)
        float32.
      sinks: patches whose token has such a norm in at least half of the images, by layer; they are what others call
        attention sinks or registers (Darcet et al. 2024, arXiv 2309.16588).

    Example:
      >>> import siglip_jax
      >>> found = siglip_jax.inference.diagnose()
      >>> found.images, found.position_norms.shape, found.median_norms.shape
      (64, (8, 8), (5,))
    """

    model: str
    images: int
    position_norms: Float[np.ndarray, "rows columns"]
    position_outliers: tuple[Spot, ...]
    attention: Float[np.ndarray, "rows columns"] | None
    attention_spread: Float[np.ndarray, "rows columns"] | None
    fixed_share: float | None
    fixed_patches: tuple[Spot, ...]
    median_norms: Float[np.ndarray, " states"]
    largest_norms: Float[np.ndarray, " states"]
    large_shares: Float[np.ndarray, " states"]
    sinks: tuple[Spot, ...]

    @property
    def findings(self) -> tuple[str, ...]:
        """A sentence for each finding, or one that says there is none."""
        return tuple(_sentences(self))

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as a dictionary that JSON can hold."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value = value.tolist()
            elif isinstance(value, tuple):
                value = [dataclasses.asdict(spot) for spot in value]
            found[field.name] = value
        return found | {"findings": list(self.findings)}


def diagnose(
    model: str | os.PathLike[str] | Siglip | None = None,
    images: Iterable[ImageSource] | None = None,
    *,
    batch_size: int | None = None,
    timeout: float = 10.0,
    max_pixels: int = MAX_PIXELS,
    on_progress: OnProgress | None = None,
) -> Diagnosis:
    """Looks for what an image tower does whatever the image.

    Images for a model of variable resolution are squashed to a square first, so that all have one grid of patches.

    Args:
      model: model as `load` returns it, with an image tower, or the directory, weights file or Hub name of one, also of
        a larger model with such a tower, as PaliGemma; None: the bundled model.
      images: at least two images, each a path, URL, bytes, PIL image or array; None: the 64 bundled examples. Images
        like those that the tower is used for say most.
      batch_size: number of images per step; None: chosen for the device.
      timeout: seconds to wait for the download of an image given as a URL.
      max_pixels: largest number of pixels of an encoded image.
      on_progress: called with (images done, number of images); None: a call of more than two seconds shows its
        progress on a terminal.

    Returns:
      A `Diagnosis`.

    Raises:
      FileNotFoundError: if the model or an image does not exist.
      ValueError: if the model has no image tower, an image cannot be read, or there are fewer than two.

    Example:
      >>> import siglip_jax
      >>> found = siglip_jax.inference.diagnose()
      >>> round(float(found.attention.sum()), 3)
      1.0
    """
    siglip = model if isinstance(model, Siglip) else _opened(model, max_pixels)
    name = "bundled" if model is None else type(model.model).__name__ if isinstance(model, Siglip) else os.fspath(model)
    tower, _ = features(siglip.model, VISION)
    encoder, config = siglip.image_encoder, tower_config(siglip.config, VISION)
    sources = list(EXAMPLES.glob("*.png") if images is None else images)
    if len(sources) < 2:
        raise ValueError(f"images must be at least two, got {len(sources)}; what is the same needs several")
    flexible = isinstance(tower, VariableResolution)
    processor: Any = siglip.processor.image_processor
    grids: list[tuple[int, int]] = []

    def prepare(source: ImageSource) -> Arrays:
        loaded = load_image(
            source, timeout=timeout, max_pixels=max_pixels, input_data_format=processor.input_data_format
        )
        if flexible:
            loaded = loaded.resize((config.patch_size * isqrt(processor.max_num_patches),) * 2)
        seen = see(siglip, loaded)
        grids.append(seen.grid)
        return seen.arrays

    rows, threads = encoder.rows(batch_size), siglip.choices.threads
    futures = in_threads(prepare, sources, workers=threads, ahead=max(2 * rows, threads))
    stream = counted(batches((future.result() for future in futures), rows), sources, "images")
    counter = Counter(on_progress, len(sources))
    observed: list[_Observed] = []
    for batch in stream:
        count, (down, across) = len(batch[0]), grids[0]
        made = _observe(tower, encoder.params, down * across, *(padded(array, rows) for array in batch))
        observed.append(_Observed(*(np.asarray(x, np.float32)[..., :count, :] for x in made)))
        counter.add(count)
    seen_by_head, norms = (np.concatenate(parts, axis=-2) for parts in zip(*observed, strict=True))
    table = np.asarray(encoder.params[VISION]["embeddings"]["position_embedding"]["embedding"], np.float32)
    side = isqrt(len(table))
    position_norms = np.linalg.norm(table, axis=1).reshape(side, side)
    attention = _attention(seen_by_head.astype(np.float64), grids[0]) if config.vision_use_head else {}
    return Diagnosis(
        model=name,
        images=len(sources),
        position_norms=position_norms,
        position_outliers=tuple(_outliers(position_norms)),
        **(_NO_HEAD | attention),
        **_norms(norms, grids[0]),
    )


def _opened(name_or_path: str | os.PathLike[str] | None, max_pixels: int) -> Siglip:
    """Returns what `load` returns, and the image tower of a larger model, with the published image processor."""
    contents = read_contents(name_or_path or BUNDLED_MODEL, for_inference=True)
    if contents.layout.get("part_of") is None:
        return load(name_or_path, max_pixels=max_pixels)
    tower: Any = getattr(models, contents.architecture)
    model, params = tower.from_pretrained(contents.path, param_dtype="float32")
    settings = published_settings(model.config, "bicubic")
    processor = image_processor_class(settings, None).from_dict(settings)
    words: Any = Missing(f"{contents.path}: the checkpoint must have a text tower to process texts, got an image tower")
    return Siglip(model, params, SiglipProcessor(processor, words), model.config, max_pixels)


_NO_HEAD: dict[str, Any] = {"attention": None, "attention_spread": None, "fixed_share": None, "fixed_patches": ()}


class _Observed(NamedTuple):
    """The attention of the head, averaged over its heads, and the norms of the tokens of each state."""

    attention: Float[Any, "images patches"]
    norms: Float[Any, "states images patches"]


@functools.partial(jax.jit, static_argnums=(0, 2))
def _observe(model: PretrainedModule, params: dict[str, Any], places: int, *inputs: Array) -> _Observed:
    method = functools.partial(tower_output, hidden_states=True)
    out, state = model.apply({"params": params}, False, *inputs, method=method, mutable=["intermediates"])
    states: Any = out.hidden_states
    norms = jnp.stack([jnp.linalg.norm(x.astype(jnp.float32), axis=-1) for x in states])[..., :places]
    if out.pooler_output is None:
        return _Observed(jnp.zeros(norms.shape[1:]), norms)
    return _Observed(pooling_weights(state).mean(axis=1)[:, :places], norms)


def _outliers(norms: Float[np.ndarray, "rows columns"]) -> Iterator[Spot]:
    """Yields the entries of a position table of large norm, the largest first."""
    times = norms / np.median(norms)
    for row, column in _places(np.where(times > TIMES, times, 0)):
        yield Spot(row, column, float(times[row, column]))


def _attention(attention: Float[np.ndarray, "images patches"], grid: tuple[int, int]) -> dict[str, Any]:
    """Returns the fields of a `Diagnosis` about the attention of the pooling head."""
    images, patches = attention.shape
    mean, variance = attention.mean(axis=0), attention.var(axis=0, ddof=1)
    within = variance.mean()
    between = ((mean - 1 / patches) ** 2).mean() - within / images  # chance alone makes the means differ
    share = max(between, 0.0) / (max(between, 0.0) + within) if between > 0 else 0.0
    spread = np.sqrt(variance)
    fixed = np.where((mean > TIMES / patches) & (spread < STEADY * mean), mean, 0).reshape(grid)
    return {
        "attention": mean.reshape(grid).astype(np.float32),
        "attention_spread": spread.reshape(grid).astype(np.float32),
        "fixed_share": float(share),
        "fixed_patches": tuple(Spot(r, c, float(fixed[r, c] * patches)) for r, c in _places(fixed)),
    }


def _norms(norms: Float[np.ndarray, "states images patches"], grid: tuple[int, int]) -> dict[str, Any]:
    """Returns the fields of a `Diagnosis` about the norms of tokens."""
    medians = np.median(norms, axis=2)
    times = norms / medians[..., None]
    large = times > TIMES
    share = large.mean(axis=1)  # (states, patches)
    sinks = []
    for layer, (often, typical) in enumerate(zip(share, times.mean(axis=1), strict=True)):
        for row, column in _places(np.where(often >= 0.5, typical, 0).reshape(grid)):
            place = row * grid[1] + column
            sinks.append(Spot(row, column, float(typical[place]), layer, float(often[place])))
    return {
        "median_norms": medians.mean(axis=1),
        "largest_norms": times.max(axis=(1, 2)),
        "large_shares": large.mean(axis=(1, 2)).astype(np.float32),
        "sinks": tuple(sinks),
    }


def _places(values: Float[np.ndarray, "rows columns"]) -> list[tuple[int, int]]:
    """Returns the (row, column) of the values above 0, the largest first."""
    order = np.argsort(-values, axis=None, kind="stable")[: np.count_nonzero(values > 0)]
    return [(int(i) // values.shape[1], int(i) % values.shape[1]) for i in order]


def _sentences(found: Diagnosis) -> Iterator[str]:
    """Yields a sentence for each finding, or one that says there is none."""
    none = True
    if spots := found.position_outliers:
        none = False
        yield (
            f"The position table has {_count(spots, 'entry', 'entries')} with a norm of more than {TIMES:g} times the"
            f" median ({np.median(found.position_norms):.3g}): {_named(spots)}. Every image gets them at these places."
        )
    if found.fixed_share is not None and found.fixed_share > 0.5:
        none = False
        yield (
            f"{found.fixed_share:.0%} of the variation of the pooling head's attention is the same whatever the image:"
            " the head prefers places more than contents."
        )
    if spots := found.fixed_patches:
        none = False
        assert found.attention is not None
        share = sum(spot.times for spot in spots) / found.attention.size
        yield (
            f"The pooling head pays {share:.0%} of its attention to {_count(spots, 'patch', 'patches')} whatever the"
            f" image, as multiples of an even share: {_named(spots)}."
        )
    places: dict[tuple[int, int], list[Spot]] = {}
    for spot in found.sinks:
        places.setdefault((spot.row, spot.column), []).append(spot)
    if places:
        none = False
        largest = [max(spots, key=lambda spot: spot.times) for spots in places.values()]
        largest.sort(key=lambda spot: -spot.times)
        layers = sorted({spot.layer for spot in found.sinks if spot.layer is not None})
        yield (
            f"{_count(largest, 'patch has a token', 'patches have tokens')} of more than {TIMES:g} times the median"
            f" norm in at least half of the images, in layers {layers[0]} to {layers[-1]}: {_named(largest)}. Such"
            " tokens hold something about the whole image rather than their place, and are seen as hot spots."
        )
    wandering = [i for i, share in enumerate(found.large_shares) if share > 0]
    if wandering and not places:
        none = False
        yield (
            f"{found.large_shares.max():.2%} of the tokens of layer {int(found.large_shares.argmax())} have a norm of"
            f" more than {TIMES:g} times the median, at places that change with the image."
        )
    if none:
        yield "Nothing stands out: no position, patch or token is large or attended to whatever the image."


def _count(spots: Sequence[Spot], one: str, several: str) -> str:
    return f"{len(spots)} {one if len(spots) == 1 else several}"


def _named(spots: Sequence[Spot]) -> str:
    """Returns the places of spots in words, at most `_NAMED` of them."""
    named = [f"row {spot.row} column {spot.column} ({spot.times:.1f} x)" for spot in spots[:_NAMED]]
    return ", ".join(named) + (f" and {len(spots) - _NAMED} more" if len(spots) > _NAMED else "")
