"""The inference engine: images and texts in, normalised embeddings, probabilities and ranked labels out.

It has no single counterpart in `transformers`; it does what `AutoProcessor` and `SiglipModel` do together there.
Everything is batched and jitted, batches have a few fixed sizes so that little is compiled, and images are decoded in
threads ahead of the device.
"""

import functools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image
from jaxtyping import Array, Float, Int

from siglip_jax._callbacks import OnUnreadable
from siglip_jax._checks import check_count
from siglip_jax.checkpoints import Checkpoint, write_checkpoint
from siglip_jax.checkpoints.formats import quantized
from siglip_jax.configs.configuration import SiglipConfig
from siglip_jax.inference.choices import choose
from siglip_jax.inference.encoder import Encoder, jitted
from siglip_jax.inference.labels import check_labels, fill_template, probabilities, rank
from siglip_jax.inference.stream import Arrays, as_images, as_texts, batches, in_threads, is_one_image, slices
from siglip_jax.inference.weights import Weights
from siglip_jax.models import Siglip2Model, SiglipModel
from siglip_jax.processing import SiglipProcessor, load_image
from siglip_jax.quantization.layers import holds_quantized

CACHED_TEXT_LISTS = 8
LOGITS = ("logit_scale", "logit_bias")

ImageSource = str | bytes | os.PathLike | PIL.Image.Image | np.ndarray | jax.Array
Images = ImageSource | Iterable[ImageSource]
Texts = str | Iterable[str]
Model = SiglipModel | Siglip2Model


class Siglip:
    """A model with its parameters and its processor; `load` makes one.

    Images are a path, URL, bytes, PIL image or array, or an iterable of them. An iterable may be a generator: it is
    read a few batches ahead, never as a whole. One image, or one string, counts as a list of one, so the first axis
    of every result is there; only `classify` answers a single image with a single list.

    No row depends on what it shares a batch with, but for the rounding of sums: batches of other sizes run other code.
    Within `jax.default_matmul_precision("highest")`, batches have one size whatever `batch_size` says, and in float32
    a row is then the same to the bit in any company.

    Attributes:
      model: the module.
      processor: makes images and texts into arrays.
      config: of the model.
      choices: what was chosen for this device.
    """

    def __init__(
        self, model: Model, params: dict[str, Any] | Weights, processor: SiglipProcessor, config: SiglipConfig
    ) -> None:
        """Takes parameters as they are, or `Weights` that come to the device when they are needed."""
        self.model, self.processor, self.config = model, processor, config
        self.choices = choose(config, model.dtype, model.attn_implementation, model.mesh)
        self._weights = params if isinstance(params, Weights) else Weights(params)
        self._text_cache: OrderedDict[tuple[str, ...], np.ndarray] = OrderedDict()

    @property
    def params(self) -> dict[str, Any]:
        """The parameters, a nested dict of arrays on the device."""
        return self._weights.all()

    @property
    def image_encoder(self) -> Encoder:
        """The image tower, from arrays to embeddings; `pixels` makes the arrays of an image."""
        params = self._weights.of("vision_model", *LOGITS)
        return Encoder(self._encode_pixels, params, self.config.vision_config.hidden_size, self.choices.image_batch)

    @property
    def text_encoder(self) -> Encoder:
        """The text tower, from arrays to embeddings; `tokens` makes the array of texts."""
        params = self._weights.of("text_model", *LOGITS)
        return Encoder(self._encode_tokens, params, self.config.text_config.embedding_size, self.choices.text_batch)

    def encode_image(
        self,
        images: Images,
        *,
        batch_size: int | None = None,
        timeout: float = 10.0,
        on_unreadable: OnUnreadable | None = None,
    ) -> Float[np.ndarray, "images embed"]:
        """Returns L2-normalised image embeddings; no images give an array of no rows.

        Args:
          images: one image or an iterable of N.
          batch_size: images per step; by default what suits model and device, 8 to 64 (of a mesh, for each share of a
            batch); `choices` has it.
          timeout: seconds to wait for a URL.
          on_unreadable: called with the position and the error of an image that cannot be read, whose row is then NaN;
            without it the error is raised.

        Raises:
          FileNotFoundError, ValueError: if an image is missing or cannot be read.
        """
        encoder = self.image_encoder
        size = encoder.rows(batch_size)
        unreadable: list[int] = []

        def pixels() -> Iterator[Arrays]:
            work, workers = functools.partial(self.pixels, timeout=timeout), self.choices.threads
            futures = in_threads(work, as_images(images), workers=workers, ahead=max(2 * size, workers))
            for position, future in enumerate(futures):
                try:
                    row = future.result()
                except (OSError, ValueError) as error:
                    if on_unreadable is None:
                        raise
                    on_unreadable(position, error)
                    unreadable.append(position)
                else:
                    yield row

        rows = encoder.run(batches(pixels(), size), size)
        if not unreadable:
            return rows
        every = np.full((len(rows) + len(unreadable), encoder.width), np.nan, np.float32)
        every[np.setdiff1d(np.arange(len(every)), unreadable)] = rows
        return every

    def encode_text(self, texts: Texts, *, batch_size: int | None = None) -> Float[np.ndarray, "texts embed"]:
        """Returns L2-normalised text embeddings; texts are padded and truncated to the model's length.

        Args:
          texts: one string or an iterable of M.
          batch_size: texts per step; by default what suits model and device, 32 to 64.

        Raises:
          ValueError: if something in `texts` is not a string.
        """
        found, encoder = as_texts(texts), self.text_encoder
        size = encoder.rows(batch_size)
        return encoder.run((self.tokens(found[i : i + size]) for i in range(0, len(found), size)), size)

    def embed_pixels(
        self, *arrays: np.ndarray | Array, batch_size: int | None = None
    ) -> Float[np.ndarray, "images embed"]:
        """Returns L2-normalised embeddings of images that the processor has made into arrays, on the device or not.

        Args:
          *arrays: one for each of the image processor's `model_input_names`, in their order; of a model of fixed
            resolution the pixel values alone, (N, H, W, C) float32.
          batch_size: as in `encode_image`.
        """
        encoder = self.image_encoder
        size = encoder.rows(batch_size)
        return encoder.run(slices(arrays, size), size)

    def embed_tokens(
        self, input_ids: Int[np.ndarray | Array, "texts length"], *, batch_size: int | None = None
    ) -> Float[np.ndarray, "texts embed"]:
        """Returns L2-normalised embeddings of texts that the tokenizer has made into ids, padded to the model's length.

        Args:
          input_ids: of M texts.
          batch_size: as in `encode_text`.
        """
        encoder = self.text_encoder
        size = encoder.rows(batch_size)
        return encoder.run(slices((input_ids,), size), size)

    def similarity(
        self,
        images: Images,
        texts: Texts,
        *,
        batch_size: int | None = None,
        timeout: float = 10.0,
        on_unreadable: OnUnreadable | None = None,
    ) -> Float[np.ndarray, "images texts"]:
        """Returns the probability that text m describes image n, each pair judged on its own: rows need not sum to one.

        The embeddings of the last few lists of texts are remembered, so asking about the same labels again costs only
        the images. The other arguments are those of `encode_image`.
        """
        text_embeds = self._remembered_text(as_texts(texts))
        image_embeds = self.encode_image(images, batch_size=batch_size, timeout=timeout, on_unreadable=on_unreadable)
        return probabilities(image_embeds @ text_embeds.T, self.temperature, self.logit_bias)

    def classify(
        self,
        images: Images,
        labels: Texts,
        *,
        hypothesis_template: str | None = None,
        top_k: int | None = None,
        batch_size: int | None = None,
        timeout: float = 10.0,
    ) -> list[Any]:
        """Ranks labels for an image: a list of `{"label", "score"}`, best first; for an iterable a list of such lists.

        Args:
          images: one image or an iterable of N.
          labels: one string or several; a repeated label is scored each time.
          hypothesis_template: a sentence whose `{}` a label takes, such as "This is a photo of {}."; by default the
            labels are used as they are.
          top_k: how many labels to keep of each list; all by default.
          batch_size: as in `encode_image`.
          timeout: as in `encode_image`.

        Raises:
          ValueError: if there are no labels, a label is blank, the template has no `{}`, or `top_k` is below 1.
        """
        names = check_labels(labels)
        check_count("top_k", top_k)
        prompts = fill_template(hypothesis_template, names)
        scores = self.similarity(images, prompts, batch_size=batch_size, timeout=timeout)
        ranked = [rank(row, names, top_k) for row in scores]
        return ranked[0] if is_one_image(images) else ranked

    @property
    def temperature(self) -> float:
        """The factor of the cosines, exp(logit_scale)."""
        return float(np.exp(np.asarray(self._weights.of("logit_scale")["logit_scale"], np.float32).item()))

    @property
    def logit_bias(self) -> float:
        """The bias, added to every logit."""
        return float(np.asarray(self._weights.of("logit_bias")["logit_bias"], np.float32).item())

    def with_params(self, params: dict[str, Any]) -> "Siglip":
        """Returns the same model with other parameters of the same shapes; nothing is compiled again."""
        other = Siglip(self.model, params, self.processor, self.config)
        for name in ("_encode_pixels", "_encode_tokens"):
            other.__dict__[name] = getattr(self, name)
        return other

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes the model and the files of its processor, for `load`; float models also for `transformers`.

        Raises:
          ValueError: if the model is quantized and the directory holds a float checkpoint, which it must not replace.
        """
        if is_quantized := holds_quantized(self.params):
            quantized.check_directory(Path(directory))  # before anything is written
        self.processor.save_pretrained(directory)
        if is_quantized:
            checkpoint = Checkpoint(self.model.config, self.params, "quantized", type(self.model).__name__)
            write_checkpoint(directory, checkpoint)
        else:
            self.model.save_pretrained(directory, self.params)

    def pixels(self, image: Any, timeout: float = 10.0) -> Arrays:
        """Returns what the image tower takes of one image: an array for each of the processor's `model_input_names`.

        Raises:
          FileNotFoundError, ValueError: if the image is missing or cannot be read.
        """
        loaded = load_image(image, timeout=timeout)
        processor = self.processor.image_processor
        inputs = processor(loaded, return_tensors="np")
        return tuple(np.asarray(inputs[name])[0] for name in processor.model_input_names)

    def tokens(self, texts: Sequence[str]) -> Arrays:
        """Returns what the text tower takes of texts: their ids, padded and truncated to the model's length."""
        length = self.config.text_config.max_position_embeddings
        return (self.processor(text=list(texts), max_length=length)["input_ids"],)

    def _remembered_text(self, texts: tuple[str, ...]) -> Float[np.ndarray, "texts embed"]:
        cache = self._text_cache
        embeds = cache.pop(texts, None)
        if embeds is None:
            embeds = self.encode_text(texts)
        cache[texts] = embeds
        while len(cache) > CACHED_TEXT_LISTS:
            cache.popitem(last=False)
        return embeds

    @functools.cached_property
    def _encode_pixels(self) -> Callable[..., Array]:
        return jitted(self.model, "get_image_features", self.choices.image_rows)

    @functools.cached_property
    def _encode_tokens(self) -> Callable[..., Array]:
        return jitted(self.model, "get_text_features", self.choices.text_rows)
