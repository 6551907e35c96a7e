"""The inference engine: images and texts in, normalised embeddings, probabilities and ranked labels out.

It has no single counterpart in `transformers`, where `AutoProcessor` and `SiglipModel` do this together. Everything is
batched and jitted, batches have a few fixed sizes so that few programs are compiled, and images are decoded in threads
ahead of the device.
"""

import functools
import itertools
import os
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Array, Float, Int

from siglip_jax._callbacks import OnUnreadable
from siglip_jax._checks import check_count, shown
from siglip_jax._progress import counted
from siglip_jax.checkpoints.keymap import TEXT
from siglip_jax.configs.towers import tower_config
from siglip_jax.inference.base import Engine
from siglip_jax.inference.calibration import Calibration
from siglip_jax.inference.encoder import Encoder, NotFiniteError
from siglip_jax.inference.images import embed_images
from siglip_jax.inference.labels import (
    check_labels,
    ensemble,
    fill_template,
    own_labels,
    own_scores,
    probabilities,
    rank,
)
from siglip_jax.inference.stream import as_texts, slices
from siglip_jax.inference.towers import check_whole
from siglip_jax.models.classifier import ImageClassifier
from siglip_jax.models.text import check_ids
from siglip_jax.processing.images.inputs import Convertible, Exchangeable, as_images, is_one_image

CACHED_TEXT_LISTS = 8

ImageSource = str | bytes | os.PathLike | PIL.Image.Image | Convertible | Exchangeable
Images = ImageSource | Iterable[ImageSource]
Texts = str | Iterable[str]


class Siglip(Engine):
    """A model with its parameters and its processor; `load` returns one.

    An image is a path, a URL, bytes, a PIL image or an array (height, width, channels) of any library, with floats in
    [0, 1], bools, uint16 in [0, 65535] or other integers in [0, 255]. Where the first and the last axis both have 1, 3
    or 4 entries, the last holds the channels, unless `processor.image_processor.input_data_format` says otherwise.
    Methods accept one image or an iterable of images. The iterable may be a generator: it is read a few batches ahead,
    never as a whole. One image or one string is treated as a list of one, so results always have a first axis; only
    `classify` returns a single list for a single image.

    A row does not depend on the other rows of its batch, except for the rounding of sums: each batch size runs its own
    program. Within `jax.default_matmul_precision("highest")` all batches have one size, `batch_size` is ignored, and in
    float32 a row is then the same to the bit in every batch. A call of more than two seconds shows its progress on a
    terminal.

    The model may be both towers, one of them, or an image classifier, whose image tower embeds images too. A method
    that needs a part which the model lacks raises an error that names it.

    Attributes:
      model: linen module, such as a `SiglipModel`, a `SiglipVisionModel` or a `SiglipForImageClassification`.
      params: parameters of the module, a nested dict of arrays on the device; reading it loads both towers.
      processor: `SiglipProcessor` that turns images and texts into arrays.
      config: configuration of the model, such as a `SiglipConfig` or a `SiglipVisionConfig`.
      choices: batch sizes, attention, matrix products and threads chosen for this device.
      max_pixels: largest number of pixels of an encoded image; a larger one is unreadable.

    Example:
      >>> import siglip_jax
      >>> from siglip_jax.assets import EXAMPLES
      >>> siglip = siglip_jax.load()
      >>> print(siglip.similarity(EXAMPLES / "horse.png", ["horse", "lemon"]).round(2))
      [[0.97 0.  ]]
    """

    def encode_image(
        self,
        images: Images,
        *,
        batch_size: int | None = None,
        timeout: float = 10.0,
        on_unreadable: OnUnreadable | None = None,
    ) -> Float[np.ndarray, "images embed"]:
        """Returns L2-normalised embeddings of images.

        Args:
          images: one image, or an iterable of N images, each a path, URL, bytes, PIL image or array (height, width,
            channels); an array (N, height, width, channels) is N images.
          batch_size: number of images per step; None: `choices.image_batch`, 8 to 64 by model and device, times the
            number of shards that a mesh divides a batch into.
          timeout: seconds to wait for the download of an image given as a URL.
          on_unreadable: called with (index of the image, error) for an image that cannot be read, or whose embedding is
            not finite; its row becomes NaN. None: the error is raised.

        Returns:
          (N, width) float32 array in host memory, N = 1 for one image; (0, width) if there are no images.

        Raises:
          FileNotFoundError: if an image does not exist and `on_unreadable` is None.
          ValueError: if an image cannot be read or its embedding is not finite and `on_unreadable` is None, `images` is
            neither an image nor an iterable, or `batch_size` is below 1.

        Example:
          >>> import siglip_jax
          >>> from siglip_jax.assets import EXAMPLES
          >>> siglip_jax.load().encode_image([EXAMPLES / "horse.png", EXAMPLES / "lemon.png"]).shape
          (2, 192)
        """
        return self._rows_of(self.image_encoder, images, batch_size, timeout, on_unreadable)

    def label_logits(
        self,
        images: Images,
        *,
        batch_size: int | None = None,
        timeout: float = 10.0,
        on_unreadable: OnUnreadable | None = None,
    ) -> Float[np.ndarray, "images labels"]:
        """Returns the logits of a classifier's own labels, whose names are `config.id2label`.

        Args:
          images: one image, or an iterable of N images, each a path, URL, bytes, PIL image or array (height, width,
            channels).
          batch_size: number of images per step; None: `choices.image_batch`.
          timeout: seconds to wait for the download of an image given as a URL.
          on_unreadable: called with (index of the image, error) for an image that cannot be read, or whose logits are
            not finite; its row becomes NaN. None: the error is raised.

        Returns:
          (N, labels) float32 array.

        Raises:
          FileNotFoundError: if an image does not exist and `on_unreadable` is None.
          ValueError: if the model is not a classifier, an image cannot be read or its logits are not finite and
            `on_unreadable` is None, or `batch_size` is below 1.

        No example: no classifier ships with the package.
        """
        return self._rows_of(self.label_encoder, images, batch_size, timeout, on_unreadable)

    def _rows_of(
        self, encoder: Encoder, images: Images, batch_size: int | None, timeout: float, bad: OnUnreadable | None
    ) -> np.ndarray:
        """Returns the rows that an encoder makes of images."""
        size = encoder.rows(batch_size)
        prepare, workers = functools.partial(self.pixels, timeout=timeout), self.choices.threads
        return embed_images(encoder, prepare, as_images(images), size, workers=workers, on_unreadable=bad)

    def encode_text(self, texts: Texts, *, batch_size: int | None = None) -> Float[np.ndarray, "texts embed"]:
        """Returns L2-normalised embeddings of texts, which are padded and truncated to the model's length.

        Args:
          texts: one string or an iterable of M strings.
          batch_size: number of texts per step; None: `choices.text_batch`, 32 to 64 by model and device, times the
            number of shards that a mesh divides a batch into.

        Returns:
          (M, width) float32 array in host memory, M = 1 for one string; (0, width) if there are no texts.

        Raises:
          ValueError: if `texts` is not a string or an iterable of strings, an embedding is not finite, or `batch_size`
            is below 1.

        Example:
          >>> import siglip_jax
          >>> siglip_jax.load().encode_text(["a horse", "a lemon"]).shape
          (2, 192)
        """
        found, encoder = as_texts(texts), self.text_encoder
        size = encoder.rows(batch_size)
        ids = (self.tokens(found[i : i + size]) for i in range(0, len(found), size))

        def refuse(row: int) -> None:
            raise NotFiniteError(f"texts[{row}], {found[row][:60]!r}")

        return encoder.run(counted(ids, found, "texts"), size, refuse)

    def embed_pixels(
        self, *arrays: np.ndarray | Array, batch_size: int | None = None
    ) -> Float[np.ndarray, "images embed"]:
        """Returns L2-normalised embeddings of images that the image processor has already turned into arrays.

        Args:
          *arrays: one array per name in the image processor's `model_input_names`, in their order, all with N rows, in
            host memory or on the device. For a model of fixed resolution: the pixel values alone, (N, height, width,
            channels) float32. For one of variable resolution: patches (N, patches, values), their mask (N, patches) and
            the grids (N, 2).
          batch_size: number of images per step; None: `choices.image_batch`.

        Returns:
          (N, width) float32 array in host memory.

        Raises:
          ValueError: if `batch_size` is below 1, an embedding is not finite, or the arrays have another shape than the
            model expects.

        Example:
          >>> import numpy as np
          >>> import siglip_jax
          >>> siglip_jax.load().embed_pixels(np.zeros((3, 64, 64, 3), np.float32)).shape
          (3, 192)
        """
        encoder = self.image_encoder
        size = encoder.rows(batch_size)
        return encoder.run(slices(arrays, size), size)

    def embed_tokens(
        self, input_ids: Int[np.ndarray | Array, "texts length"], *, batch_size: int | None = None
    ) -> Float[np.ndarray, "texts embed"]:
        """Returns L2-normalised embeddings of texts that the tokenizer has already turned into ids.

        Args:
          input_ids: token ids of M texts, (M, length) integers, padded to the model's length, in host memory or on the
            device.
          batch_size: number of texts per step; None: `choices.text_batch`.

        Returns:
          (M, width) float32 array in host memory.

        Raises:
          ValueError: if `batch_size` is below 1, the ids are longer than the model's length, or an id is outside the
            vocabulary.

        Example:
          >>> import siglip_jax
          >>> siglip = siglip_jax.load()
          >>> siglip.embed_tokens(*siglip.tokens(["a horse", "a lemon"])).shape
          (2, 192)
        """
        encoder = self.text_encoder
        check_ids("input_ids", input_ids, tower_config(self.config, TEXT).vocab_size)
        size = encoder.rows(batch_size)
        return encoder.run(slices((input_ids,), size), size)

    def similarity(
        self,
        images: Images,
        texts: Texts | None = None,
        *,
        calibration: Calibration | None = None,
        batch_size: int | None = None,
        timeout: float = 10.0,
        on_unreadable: OnUnreadable | None = None,
    ) -> Float[np.ndarray, "images texts"]:
        """Returns the sigmoid probability that each text describes each image.

        Each pair is scored on its own, so rows need not sum to one. Right answers often have tiny probabilities: the
        model learned them where one text in tens of thousands matches. Their order is what counts; a calibration fits
        them to a set of labels. The embeddings of the last 8 lists of texts are cached: repeated labels cost nothing.

        Args:
          images: one image, or an iterable of N images, each a path, URL, bytes, PIL image or array (height, width,
            channels).
          texts: one string or an iterable of M strings; None: the M labels of the calibration.
          calibration: labels with their prompts, temperature and bias, from `siglip_jax.evaluation.calibrate` or
            `Calibration.read`, in place of texts and of the model's own temperature and bias; None: the model's own.
          batch_size: number of images per step; None: `choices.image_batch`.
          timeout: seconds to wait for the download of an image given as a URL.
          on_unreadable: called with (index of the image, error) for an image that cannot be read, or whose embedding is
            not finite; its row becomes NaN. None: the error is raised.

        Returns:
          (N, M) float32 array of probabilities in [0, 1].

        Raises:
          FileNotFoundError: if an image does not exist and `on_unreadable` is None.
          ValueError: if an image cannot be read or its embedding is not finite and `on_unreadable` is None, the
            embedding of a text, the temperature or the bias is not finite, `texts` are not strings, `batch_size` is
            below 1, both or neither of `texts` and `calibration` are given, or the calibration is for another model.

        Example:
          >>> import siglip_jax
          >>> from siglip_jax.assets import EXAMPLES
          >>> images = [EXAMPLES / "horse.png", EXAMPLES / "lemon.png"]
          >>> print(siglip_jax.load().similarity(images, ["horse", "lemon"]).round(2))
          [[0.97 0.  ]
           [0.   0.92]]
        """
        check_whole(self.model)
        if calibration is None:
            text_embeds, temperature, bias = self._remembered_text(as_texts(texts)), self.temperature, self.logit_bias
        else:
            _refuse_beside("texts", texts)
            calibration.check_model(self.fingerprint)
            prompts = self._remembered_text(tuple(itertools.chain(*calibration.prompts)))
            text_embeds = ensemble(prompts, list(map(len, calibration.prompts)))
            temperature, bias = calibration.temperature, calibration.bias
        image_embeds = self.encode_image(images, batch_size=batch_size, timeout=timeout, on_unreadable=on_unreadable)
        return probabilities(image_embeds @ text_embeds.T, temperature, bias)

    def classify(
        self,
        images: Images,
        labels: Texts | None = None,
        *,
        calibration: Calibration | None = None,
        hypothesis_template: str | None = None,
        top_k: int | None = None,
        batch_size: int | None = None,
        timeout: float = 10.0,
    ) -> list[Any]:
        """Ranks labels by the sigmoid probability that they describe an image.

        Each label is scored on its own, so scores need not sum to one. A classifier ranks its own labels instead, by
        the scores that `pipeline("image-classification")` returns.

        Args:
          images: one image, or an iterable of N images, each a path, URL, bytes, PIL image or array (height, width,
            channels).
          labels: one string or an iterable of strings; a repeated label appears in the result each time. None: those
            of the calibration, or of a classifier.
          calibration: labels with their prompts, temperature, bias and threshold, from
            `siglip_jax.evaluation.calibrate` or `Calibration.read`, in place of labels; None: the model's own
            temperature and bias.
          hypothesis_template: sentence in which each label replaces `{}`, such as "This is a photo of {}."; None: the
            labels are used as they are.
          top_k: number of labels to keep per image; None: all.
          batch_size: number of images per step; None: `choices.image_batch`.
          timeout: seconds to wait for the download of an image given as a URL.

        Returns:
          For one image, a list of `{"label": str, "score": float}`, highest score first, ties in the order given; for
          an iterable of images, a list of such lists. A calibration with a threshold adds `"accepted": bool`, whether
          the score reaches it.

        Raises:
          FileNotFoundError: if an image does not exist.
          ValueError: if an image cannot be read, an embedding is not finite, there are no labels, a label is blank, the
            template has no `{}`, `top_k` or `batch_size` is below 1, labels or a template are given beside a
            calibration, or the calibration is for another model.

        Example:
          >>> import siglip_jax
          >>> from siglip_jax.assets import EXAMPLES
          >>> ranked = siglip_jax.load().classify(EXAMPLES / "horse.png", ["lemon", "horse", "church"], top_k=2)
          >>> ranked[0]["label"], round(ranked[0]["score"], 2)
          ('horse', 0.97)
        """
        check_count("top_k", top_k)
        threshold = None
        if calibration is not None:
            _refuse_beside("labels", labels)
            _refuse_beside("hypothesis_template", hypothesis_template)
            names, threshold = calibration.labels, calibration.threshold
            scores = self.similarity(images, calibration=calibration, batch_size=batch_size, timeout=timeout)
        elif labels is None and isinstance(self.model, ImageClassifier):
            logits = self.label_logits(images, batch_size=batch_size, timeout=timeout)
            names, scores = own_labels(self.config), own_scores(logits, self.config)
        else:
            names = check_labels(labels)
            prompts = fill_template(hypothesis_template, names)
            scores = self.similarity(images, prompts, batch_size=batch_size, timeout=timeout)
        ranked = [rank(row, names, top_k, threshold) for row in scores]
        return ranked[0] if is_one_image(images) else ranked

    def _remembered_text(self, texts: tuple[str, ...]) -> Float[np.ndarray, "texts embed"]:
        """Returns embeddings of texts, from the cache of the last `CACHED_TEXT_LISTS` lists where possible."""
        cache, tokenizer = self._text_cache, self.processor.tokenizer
        key = (texts, repr(tokenizer), tokenizer.largest_id)  # its special tokens may have been assigned
        embeds = cache.pop(key, None)
        if embeds is None:
            embeds = self.encode_text(texts)
        cache[key] = embeds
        while len(cache) > CACHED_TEXT_LISTS:
            cache.popitem(last=False)
        return embeds

    @functools.cached_property
    def _text_cache(self) -> OrderedDict[tuple[Any, ...], np.ndarray]:
        """Embeddings of the last lists of texts."""
        return OrderedDict()


def _refuse_beside(name: str, value: object) -> None:
    """Raises a `ValueError` for an argument that is given together with a calibration."""
    if value is not None:
        raise ValueError(
            f"{name} must be None with a calibration, which has its own labels and prompts, got {shown(value)}; leave"
            " one of them out"
        )
