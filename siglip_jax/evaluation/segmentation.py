"""Zero-shot segmentation: each pixel gets the class whose prompts are nearest to its patches."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from siglip_jax._callbacks import Counter, OnUnreadable, naming
from siglip_jax.data.sources.masks import IGNORED, NONE, MaskFolder
from siglip_jax.evaluation.embeddings import spread
from siglip_jax.evaluation.prompts import TEMPLATES, named_classes, refuse_codes
from siglip_jax.evaluation.result import DEFAULTS, Options
from siglip_jax.evaluation.wording import Wording, embed_classes, other_names
from siglip_jax.inference.encoder import NotFiniteError, not_finite
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.seen import Box, Seen, between_cells, see, states_of
from siglip_jax.inference.stream import in_threads, padded, stacked
from siglip_jax.inference.towers import check_whole
from siglip_jax.processing import load_image

_BLOCK = 1 << 22  # cosines of pixels with classes at once


@dataclasses.dataclass(frozen=True)
class SegmentationResult:
    """Metrics of a segmentation, and the counts behind them.

    Attributes:
      metrics: `mean_iou`, the mean over the classes that are in the masks or predicted of intersection over union, and
        `pixel_accuracy`, the share of the counted pixels whose class is predicted; 0 to 1.
      examples: number of images that were segmented.
      unreadable: number of images that were left out because they, or their masks, are unreadable.
      classes: names of the classes; the first is the background if it is one of them.
      confusion: number of pixels of each class (rows) that were taken for each class (columns), over all images,
        (classes, classes).
      settings: settings of the evaluation, serializable as JSON.
      preprocessing: model, dtype and preparation of images and texts, serializable as JSON.

    Example:
      >>> result = SegmentationResult({}, 1, 0, ("sky", "sea"), np.array([[3, 1], [0, 4]]), {}, {})
      >>> result.iou.tolist()
      [0.75, 0.8]
    """

    metrics: dict[str, float]
    examples: int
    unreadable: int
    classes: tuple[str, ...]
    confusion: Int[np.ndarray, "classes classes"]
    settings: dict[str, Any]
    preprocessing: dict[str, Any]

    @property
    def iou(self) -> Float[np.ndarray, " classes"]:
        """Intersection over union of each class, (classes,); NaN for a class that is neither in masks nor predicted."""
        return intersection_over_union(self.confusion)

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as a dict serializable as JSON.

        Returns:
          `task`, `metrics`, `examples`, `unreadable`, `settings`, `preprocessing`, and `classes` with the number of
          pixels, the intersection over union (None for a class that does not occur) and the recall (None for one that
          is in no mask) of each.
        """
        pixels, right = self.confusion.sum(axis=1).tolist(), np.diagonal(self.confusion).tolist()
        rows = zip(self.classes, pixels, right, self.iou.tolist(), strict=True)
        return {
            "task": "segmentation",
            "metrics": self.metrics,
            "examples": self.examples,
            "unreadable": self.unreadable,
            "settings": self.settings,
            "preprocessing": self.preprocessing,
            "classes": [
                {
                    "class": name,
                    "pixels": count,
                    "iou": iou if iou == iou else None,
                    "recall": hits / count if count else None,
                }
                for name, count, hits, iou in rows
            ],
        }


def evaluate_segmentation(
    siglip: Siglip,
    source: MaskFolder,
    *,
    background: str | None = None,
    threshold: float | None = None,
    templates: Sequence[str] = TEMPLATES["names"],
    classes: Sequence[str] | None = None,
    canonicalize: bool = True,
    first_name_only: bool = True,
    options: Options = DEFAULTS,
) -> SegmentationResult:
    """Gives each pixel the class whose prompts are nearest to its patches, without any training.

    A patch is embedded as if the pooling head attended to it alone: through the value projection, the out projection
    and the MLP of the head. The last hidden state itself has nothing to do with texts. The cosines of patches with
    classes are interpolated bilinearly between the centres of the patches, to the size of the mask, where the largest
    one decides. Intersections and unions are summed over all images before they are divided.

    Pixels of no class are not counted, unless there is a background: a class of its own with a prompt or with a
    threshold. Pixels that the masks say to ignore never are.

    Args:
      siglip: model of both towers, with a pooling head.
      source: images with masks, as `siglip_jax.data.open_masks` returns them.
      background: name of what pixels of no class show, such as "background" or "sky, wall, floor" with
        `first_name_only=False`: it competes as a class; None: there is no such class.
      threshold: cosine below which a pixel is background whatever class is nearest, -1 to 1; None: none is.
      templates: sentences in which the name of a class replaces `{}`; the default is the bare name.
      classes: names to use in place of `source.classes`; see `evaluate_zero_shot`.
      canonicalize: whether to write names and templates in lower case, without punctuation and with spaces for
        underscores; otherwise they are unchanged.
      first_name_only: whether to use only the name before the first comma; otherwise each name has prompts of its own.
      options: limit, batch size and callbacks, which all evaluations share; an image whose mask has another size is
        unreadable.

    Returns:
      The result, with the metrics `mean_iou` and `pixel_accuracy`.

    Raises:
      ValueError: if there are fewer than two classes, background included, no image is readable, no pixel is counted,
        the model lacks a tower or its pooling head, both `background` and `threshold` are given, or `classes` does not
        name each class.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> import PIL.Image
      >>> import siglip_jax
      >>> from siglip_jax.data import open_masks
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     Path(folder, "images").mkdir()
      ...     sheet = PIL.Image.new("RGB", (128, 64))
      ...     for i, name in enumerate(("lemon", "horse")):
      ...         Path(folder, "masks", name).mkdir(parents=True)
      ...         drawn = PIL.Image.open(siglip_jax.assets.EXAMPLES / f"{name}.png").convert("RGBA")
      ...         sheet.paste(drawn, (64 * i, 0), drawn)
      ...         mask = PIL.Image.new("1", (128, 64))
      ...         mask.paste(1, (64 * i, 0, 64 * i + 64, 64))
      ...         mask.save(Path(folder, "masks", name, "both.png"))
      ...     sheet.save(Path(folder, "images", "both.png"))
      ...     result = evaluate_segmentation(siglip_jax.load(), open_masks(folder))
      >>> result.classes, result.confusion.sum()
      (('horse', 'lemon'), np.int64(8192))
    """
    check_whole(siglip.model)
    names = source.classes if classes is None else named_classes(source.classes, classes)
    refuse_codes(names)
    if background is not None and threshold is not None:
        raise ValueError(
            f"background must be a prompt or a threshold, got {background!r} and {threshold}; leave out one"
        )
    if threshold is not None and not -1 <= threshold <= 1:
        raise ValueError(f"threshold must be a cosine from -1 to 1, got {threshold}")
    with_background = background is not None or threshold is not None
    compared = names if background is None else (background, *names)
    if len(names) + with_background < 2:
        raise ValueError(f"classes must be two or more with the background, got only {names[0]!r}; give a background")
    wording = Wording(templates, canonicalize, first_name_only)
    class_embeds = embed_classes(siglip, wording.prompts(compared), options.batch_size)
    counted = len(names) + with_background
    confusion, examples, unreadable = np.zeros((counted, counted), np.int64), 0, 0

    def report(number: int, error: Exception) -> None:
        nonlocal unreadable
        unreadable += 1
        if options.on_unreadable is not None:
            options.on_unreadable(number, error)

    for seen, mask, embeds in _embedded(siglip, source, options, report):
        cosines = (class_embeds @ embeds.T).reshape(-1, *seen.grid)
        found = nearest_classes(cosines, mask.shape, seen.box, threshold)
        confusion += count_pixels(mask, found, counted, with_background)
        examples += 1
    if not examples or not confusion.any():
        raise ValueError(
            f"one or more pixels of readable images must have a class, got none in {examples} images and {unreadable}"
            " that are unreadable; check the masks, or give a background"
        )
    iou = intersection_over_union(confusion)
    settings = {
        "limit": options.limit,
        "other_names": other_names(compared),
        "background": background,
        "threshold": threshold,
        "pixels_of_no_class": "background" if with_background else "not counted",
        "maps": "pooling head on each patch alone, cosines, bilinear to the mask",
        "mean_over": "classes in masks or predicted, counts summed over images",
    }
    return SegmentationResult(
        {"mean_iou": float(np.nanmean(iou)), "pixel_accuracy": float(np.trace(confusion) / confusion.sum())},
        examples,
        unreadable,
        (background or "background", *names) if with_background else names,
        confusion,
        settings,
        wording.describe(siglip, options.model_name),
    )


def nearest_classes(
    cosines: Float[np.ndarray, "classes rows columns"],
    size: tuple[int, ...],
    box: Box = (0.0, 0.0, 1.0, 1.0),
    threshold: float | None = None,
) -> Int[np.ndarray, "height width"]:
    """Returns the class of the largest cosine at each pixel, interpolated bilinearly between the centres of patches.

    Beyond the outermost centres, and outside the part that the patches cover, the nearest ones count. The interpolated
    cosines of an image are never held as a whole.

    Args:
      cosines: cosine of each class with each patch.
      size: height and width of the result.
      box: top, left, bottom and right of the part of the image that the patches cover, as shares of its sides.
      threshold: cosine below which a pixel gets class 0, and the others one more than their class; None: no such class.
    """
    _, rows, columns = cosines.shape
    top, left, bottom, right = box
    down, across = between_cells(size[0], rows, top, bottom), between_cells(size[1], columns, left, right)
    wide = cosines.astype(np.float64) @ across.T
    found = np.empty(size[:2], np.int64)
    step = max(1, _BLOCK // (len(cosines) * size[1]))
    for start in range(0, size[0], step):
        at = np.einsum("hr,crw->chw", down[start : start + step], wide, optimize=True)
        best = at.argmax(axis=0)
        if threshold is not None:
            best = np.where(at.max(axis=0) < threshold, 0, best + 1)
        found[start : start + step] = best
    return found


def count_pixels(
    mask: UInt8[np.ndarray, "height width"], found: Int[np.ndarray, "height width"], classes: int, background: bool
) -> Int[np.ndarray, "classes classes"]:
    """Returns how many pixels of each class were taken for each class.

    Args:
      mask: value of each pixel, 0 for no class, 1 for the first class, 255 for ignored.
      found: index of the predicted class of each pixel; with a background 0 is the background.
      classes: number of classes, background included.
      background: whether pixels of no class are the first class; otherwise they are not counted.
    """
    kept = mask != IGNORED if background else (mask != IGNORED) & (mask != NONE)
    truth = mask[kept].astype(np.int64) - (not background)
    return np.bincount(truth * classes + found[kept], minlength=classes * classes).reshape(classes, classes)


def intersection_over_union(confusion: Int[np.ndarray, "classes classes"]) -> Float[np.ndarray, " classes"]:
    """Returns the intersection over union of each class; NaN for a class that is neither in masks nor predicted."""
    right = np.diagonal(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - right
    with np.errstate(invalid="ignore"):
        return right / union


def _embedded(
    siglip: Siglip, source: MaskFolder, options: Options, on_unreadable: OnUnreadable
) -> Iterator[tuple[Seen, UInt8[np.ndarray, "height width"], Float[np.ndarray, "patches embed"]]]:
    """Yields each readable image as the tower gets it, with its mask and the embeddings of its patches, in order."""
    numbers = spread(len(source), options.limit)
    counter = Counter(options.on_progress, len(numbers))
    size = siglip.image_encoder.rows(options.batch_size)

    def read(number: int) -> tuple[Seen, np.ndarray, str]:
        image, mask, name = source[number]
        try:
            loaded = load_image(image, max_pixels=siglip.max_pixels)
        except ValueError as error:
            raise naming(name, error) from error
        mask = np.zeros((loaded.height, loaded.width), np.uint8) if mask is None else mask
        if mask.shape != (loaded.height, loaded.width):
            raise ValueError(
                f"{name}: the mask must have the size of the image, {loaded.width} x {loaded.height}, got"
                f" {mask.shape[1]} x {mask.shape[0]}"
            )
        return see(siglip, loaded), mask, name

    waiting: list[tuple[Seen, np.ndarray, str]] = []

    def embedded() -> Iterator[tuple[Seen, np.ndarray, np.ndarray]]:
        batch = stacked([seen.arrays for seen, *_ in waiting])
        embeds = np.asarray(states_of(siglip, tuple(padded(array, size) for array in batch)).alone, np.float32)
        for (seen, mask, name), padded_embeds in zip(waiting, embeds, strict=False):
            own = padded_embeds[: seen.grid[0] * seen.grid[1]]
            if len(not_finite(own)):
                raise NotFiniteError(name)
            yield seen, mask, own
        waiting.clear()

    workers = siglip.choices.threads
    for number, future in zip(numbers, in_threads(read, numbers, workers=workers, ahead=2 * workers), strict=True):
        counter.add(1)
        try:
            waiting.append(future.result())
        except (OSError, ValueError) as error:
            on_unreadable(number, error)
        if len(waiting) == size:
            yield from embedded()
    if waiting:
        yield from embedded()
