"""Zero-shot accuracy of a model on the held-out pictograms: the metrics of the card of the bundled model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from research.pictograms.dataset import NEAR_DUPLICATE, Pictograms, load_split
from research.pictograms.other_styles import ON_PHOTOGRAPHS
from research.pictograms.sources import OTHER_STYLES

Scores = dict[str, int | float]
Encode = Callable[[list], np.ndarray]  # n images (64, 64, 4) uint8, or n texts, to (n, embed) unit vectors
TEMPLATE = "This is a photo of {}."


def zero_shot(
    image_embeds: Float[np.ndarray, "n embed"],
    text_embeds: Float[np.ndarray, "m embed"],
    target: Sequence[int],
    ks: tuple[int, ...] = (1, 10),
) -> Scores:
    """Returns the percentage of the n images whose own text, `target[i]`, is among the k most similar of m texts."""
    similarity = image_embeds @ text_embeds.T
    own = np.take_along_axis(similarity, np.asarray(target)[:, None], axis=1)
    rank = (similarity > own).sum(axis=1)
    return {f"top{k}": round(100 * float((rank < k).mean()), 2) for k in ks}


def scores_of(
    split: Pictograms,
    encode_images: Encode,
    encode_texts: Encode,
    template: str = "{}",
    names: Sequence[str] | None = None,
) -> Scores:
    """Returns the zero-shot accuracy on `split` with `names`, by default its own captions, as candidates.

    Returns:
      `rows`, `candidates`, and `top1` and `top10` in percent.
    """
    names = list(dict.fromkeys(row["caption"] for row in split.rows) if names is None else names)
    number = {name: i for i, name in enumerate(names)}
    target = [number[row["caption"]] for row in split.rows]
    texts = encode_texts([template.format(name) for name in names])
    return {"rows": len(target), "candidates": len(names)} | zero_shot(encode_images(list(split.images)), texts, target)


def report(data: str | Path, encode_images: Encode, encode_texts: Encode) -> dict[str, Scores]:
    """Returns all metrics of the card, by name, for the splits that `research.pictograms.build` wrote to `data`.

    Test sets of other styles are included if `research.pictograms.other_styles` wrote them.

    Raises:
      FileNotFoundError: if a split is missing.
    """
    fluent, clip_art = load_split(data, "fluent3d"), load_split(data, "clipart_test")
    trained = {row["caption"] for row in load_split(data, "train").rows}
    encode = encode_images, encode_texts

    def distant(split: Pictograms) -> Pictograms:
        return split.subset(lambda row: row["near"] <= NEAR_DUPLICATE)

    unseen = distant(clip_art.subset(lambda row: row["caption"] not in trained))
    metrics = {
        "fluent3d": scores_of(fluent, *encode),
        f"fluent3d, near <= {NEAR_DUPLICATE}": scores_of(
            distant(fluent), *encode, names=[row["caption"] for row in fluent.rows]
        ),
        f"fluent3d, {TEMPLATE!r}": scores_of(fluent, *encode, TEMPLATE),
        "fluent3d, animals & nature": scores_of(fluent.subset(lambda row: row["group"] == "animals & nature"), *encode),
        "fluent3d, food & drink": scores_of(fluent.subset(lambda row: row["group"] == "food & drink"), *encode),
        "clipart_test": scores_of(clip_art, *encode),
        f"clipart_test, unseen captions, near <= {NEAR_DUPLICATE}": scores_of(unseen, *encode),
    }
    for style in (*OTHER_STYLES, ON_PHOTOGRAPHS):
        if (Path(data) / f"{style}.npz").is_file():
            metrics[style] = scores_of(load_split(data, style), *encode)
    return metrics
