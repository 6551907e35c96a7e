"""Batches for the bundled model: the captions and images of a training step, a pure function of (seed, step)."""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Shaped, UInt8
from PIL import Image

from research.pictograms.augmentation import affine_coefficients, warp
from research.pictograms.dataset import PROMPTS, Pictograms
from siglip_jax.processing.text.canonical import canonicalize

Tokenize = Callable[[list[str]], np.ndarray]  # m texts -> (m, positions) int32

TAG_TEXTS = 3  # texts of each kind made from a caption's tags: with the caption, and without
BARE, PROMPTED, WITH_TAGS, TAGS_ONLY = 0.55, 0.25, 0.12, 0.08  # share of each kind of text
FLIP_RATE = 0.25
FLAG_WEIGHT = 0.3  # rate at which a flag is sampled, relative to another image
MIRROR_MATTERS = {"symbols", "flags", "signs_and_symbols", "geography", "shapes"}  # groups that are never mirrored
DIRECTIONS = re.compile(
    r"\b(left|right|leftwards|rightwards|quarter|crescent|clockwise|counterclockwise|o.clock|thirty)\b"
)


class Batch(NamedTuple):
    """A batch: the first `len(images)` texts describe the images, row by row; the others are negatives for all."""

    images: UInt8[np.ndarray, "n 64 64 4"]
    input_ids: Int32[np.ndarray, "m positions"]
    skipped: tuple[str, ...] = ()  # every drawing is readable

    @property
    def arrays(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Inputs of the training step."""
        groups = {
            "image_groups": np.arange(len(self.images), dtype=np.int32),
            "text_groups": np.arange(len(self.input_ids), dtype=np.int32),
        }
        return {"pixels": self.images, "input_ids": self.input_ids} | groups


def texts_of(caption: str, tags: list[str], rng: np.random.Generator) -> list[str]:
    """Returns every text of a caption: each prompt, then texts with tags, then texts of tags alone."""
    texts = [prompt.format(caption) for prompt in PROMPTS]
    for low, high, start in ((1, 3, [caption]), (2, 4, [])):
        for _ in range(TAG_TEXTS):
            if len(tags) < low:
                texts.append(caption)
            else:
                size = min(int(rng.integers(low, high + 1)), len(tags))
                texts.append(" ".join(start + [tags[i] for i in rng.permutation(len(tags))[:size]]))
    return texts


class Batches:
    """Samples the batch of a step: different captions, a text for each, and an image for each of the first ones.

    A caption is sampled in proportion to its number of images. No two texts of a step belong to the same caption,
    because another rendering of the same thing would count as a wrong answer.
    """

    def __init__(
        self, train: Pictograms, tokenize: Tokenize, images: int, texts: int, seed: int, smallest: float = 0.8
    ):
        """Tokenizes every text once.

        Args:
          train: the training split.
          tokenize: the model's tokenizer, padding to the model's text length.
          images: number of images in a step.
          texts: number of texts in a step, at least `images`.
          seed: seed of every sample.
          smallest: smallest scale of an image.

        Raises:
          ValueError: if there are fewer captions than texts in a step, or fewer texts than images.
        """
        rows_of: dict[str, list[int]] = {}
        for i, row in enumerate(train.rows):
            rows_of.setdefault(canonicalize(row["caption"]), []).append(i)
        if not images <= texts <= len(rows_of):
            raise ValueError(
                f"a step must have images <= texts <= captions, got {images} images, {texts} texts and"
                f" {len(rows_of)} captions; lower the batch or add data"
            )
        self.images, self.texts, self.seed, self.smallest = images, texts, seed, smallest
        self.drawings = [Image.fromarray(image, "RGBA").convert("RGBa") for image in train.images]
        self.rows_of = [np.asarray(rows) for rows in rows_of.values()]
        self.may_flip = np.asarray(
            [row["group"] not in MIRROR_MATTERS and not DIRECTIONS.search(row["caption"].lower()) for row in train.rows]
        )
        weight = [sum(FLAG_WEIGHT if train.rows[i]["group"] == "flags" else 1.0 for i in rows) for rows in self.rows_of]
        self.log_weight = np.log(weight)

        rng = np.random.default_rng([seed, 2**31])
        texts_by_caption = [
            texts_of(caption, sorted({tag for i in rows for tag in train.rows[i]["tags"]}), rng)
            for caption, rows in rows_of.items()
        ]
        ids = tokenize([text for group in texts_by_caption for text in group])
        self.ids = np.asarray(ids, np.int32).reshape(len(rows_of), len(texts_by_caption[0]), -1)
        others = len(PROMPTS) - 1
        self.kind_rate = np.asarray(
            [BARE]
            + [PROMPTED / others] * others
            + [WITH_TAGS / TAG_TEXTS] * TAG_TEXTS
            + [TAGS_ONLY / TAG_TEXTS] * TAG_TEXTS
        )
        drawn = hashlib.sha256(train.images.tobytes())
        drawn.update(self.ids.tobytes())
        self.fingerprint = f"{drawn.hexdigest()[:16]}, {images} images, {texts} texts, seed {seed}, {smallest}"

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of the steps from `start` on, endlessly."""
        return map(self, itertools.count(start))

    def __call__(self, step: int) -> Batch:
        """Returns the batch of `step`, which is always the same."""
        rng = np.random.default_rng([self.seed, step])
        # Weighted sampling without replacement: the captions with the largest keys.
        keys = self.log_weight + rng.gumbel(size=len(self.log_weight))
        captions = rng.permutation(np.argpartition(-keys, self.texts - 1)[: self.texts])
        kinds = rng.choice(len(self.kind_rate), self.texts, p=self.kind_rate)
        rows = np.asarray([rng.choice(self.rows_of[caption]) for caption in captions[: self.images]])
        flip = (rng.random(self.images) < FLIP_RATE) & self.may_flip[rows]
        images = warp([self.drawings[row] for row in rows], affine_coefficients(rng, flip, self.smallest))
        return Batch(images, self.ids[captions, kinds])
