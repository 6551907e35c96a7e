"""The inference engine: images and texts in, normalised embeddings, probabilities and ranked labels out.

It has no single counterpart in `transformers`, where `AutoProcessor` and `SiglipModel` do this together. Everything is
batched and jitted, batches have a few fixed sizes so that few programs are compiled, and images are decoded in threads
ahead of the device.
"""

import functools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Array, Float, Int

from siglip_jax._callbacks import OnUnreadable
from siglip_jax._checks import check_count
from siglip_jax._files import MAX_PIXELS
from siglip_jax._progress import counted
from siglip_jax.checkpoints import Checkpoint, write_checkpoint
from siglip_jax.checkpoints.formats import quantized
from siglip_jax.configs.configuration import SiglipConfig
from siglip_jax.inference.choices import choose, in_brief
from siglip_jax.inference.encoder import Encoder, NotFiniteError, jitted
from siglip_jax.inference.images import embed_images
from siglip_jax.inference.labels import check_labels, fill_template, probabilities, rank
from siglip_jax.inference.stream import Arrays, as_texts, slices
from siglip_jax.inference.weights import Weights
from siglip_jax.models import Siglip2Model, SiglipModel
from siglip_jax.models.text import check_ids
from siglip_jax.processing import SiglipProcessor, load_image
from siglip_jax.processing.images.inputs import Convertible, Exchangeable, as_images, is_one_image
from siglip_jax.quantization.layers import holds_quantized

CACHED_TEXT_LISTS = 8
LOGITS = ("logit_scale", "logit_bias")

ImageSource = str | bytes | os.PathLike | PIL.Image.Image | Convertible | Exchangeable
Images = ImageSource | Iterable[ImageSource]
Texts = str | Iterable[str]
Model = SiglipModel | Siglip2Model


class Siglip:
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

    Attributes:
      model: linen module, a `SiglipModel` or a `Siglip2Model`.
      processor: `SiglipProcessor` that turns images and texts into arrays.
      config: configuration of the model, a `SiglipConfig` or a `Siglip2Config`.
      choices: batch sizes, attention, matrix products and threads chosen for this device.
      max_pixels: largest number of pixels of an encoded image; a larger one is unreadable.

    Example:
      >>> import siglip_jax
      >>> from siglip_jax.assets import EXAMPLES
      >>> siglip = siglip_jax.load()
      >>> print(siglip.similarity(EXAMPLES / "horse.png", ["horse", "lemon"]).round(2))
      [[0.38 0.  ]]
    """

    def __init__(
        self,
        model: Model,
        params: dict[str, Any] | Weights,
        processor: SiglipProcessor,
        config: SiglipConfig,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Builds the engine; nothing is compiled or moved to the device yet.

        Args:
          model: linen module to apply, a `SiglipModel` or a `Siglip2Model`; its dtype is the compute dtype.
          params: parameters of the module, a nested dict of arrays, or `Weights`, which are placed on the device when
            they are first used.
          processor: `SiglipProcessor` that turns images and texts into arrays.
          config: configuration of the model, a `SiglipConfig` or a `Siglip2Config`.
          max_pixels: largest number of pixels of an encoded image.

        Raises:
          ValueError: if the module's attention implementation does not run on this device.
        """
        self.model, self.processor, self.config, self.max_pixels = model, processor, config, max_pixels
        self.choices = choose(config, model.dtype, model.attn_implementation, model.mesh)
        self._weights = params if isinstance(params, Weights) else Weights(params)
        self._text_cache: OrderedDict[tuple[Any, ...], np.ndarray] = OrderedDict()

    def __repr__(self) -> str:
        """Returns the model's kind and sizes, its dtype and its device, without reading weights."""
        return f"Siglip({in_brief(self.model, self.config)}, device={self.choices.device})"

    @property
    def params(self) -> dict[str, Any]:
        """The parameters as a nested dict of arrays on the device; reading it loads both towers."""
        return self._weights.all()

    @property
    def image_encoder(self) -> Encoder:
        """The image tower as a function from arrays to embeddings; `pixels` returns the arrays of an image."""
        params = self._weights.of("vision_model", *LOGITS)
        return Encoder(
            self._encode_pixels, params, self.config.vision_config.hidden_size, self.choices.image_batch, "images"
        )

    @property
    def text_encoder(self) -> Encoder:
        """The text tower as a function from token ids to embeddings; `tokens` returns the ids of texts."""
        params = self._weights.of("text_model", *LOGITS)
        return Encoder(
            self._encode_tokens, params, self.config.text_config.embedding_size, self.choices.text_batch, "texts"
        )

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
        encoder = self.image_encoder
        size = encoder.rows(batch_size)
        prepare, workers = functools.partial(self.pixels, timeout=timeout), self.choices.threads
        return embed_images(encoder, prepare, as_images(images), size, workers=workers, on_unreadable=on_unreadable)

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
        check_ids("input_ids", input_ids, self.config.text_config.vocab_size)
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
        """Returns the sigmoid probability that each text describes each image.

        Each pair is scored on its own, so rows need not sum to one. The embeddings of the last 8 lists of texts are
        cached: repeated labels cost nothing.

        Args:
          images: one image, or an iterable of N images, each a path, URL, bytes, PIL image or array (height, width,
            channels).
          texts: one string or an iterable of M strings.
          batch_size: number of images per step; None: `choices.image_batch`.
          timeout: seconds to wait for the download of an image given as a URL.
          on_unreadable: called with (index of the image, error) for an image that cannot be read, or whose embedding is
            not finite; its row becomes NaN. None: the error is raised.

        Returns:
          (N, M) float32 array of probabilities in [0, 1].

        Raises:
          FileNotFoundError: if an image does not exist and `on_unreadable` is None.
          ValueError: if an image cannot be read or its embedding is not finite and `on_unreadable` is None, the
            embedding of a text, the temperature or the bias is not finite, `texts` are not strings, or `batch_size` is
            below 1.

        Example:
          >>> import siglip_jax
          >>> from siglip_jax.assets import EXAMPLES
          >>> images = [EXAMPLES / "horse.png", EXAMPLES / "lemon.png"]
          >>> print(siglip_jax.load().similarity(images, ["horse", "lemon"]).round(2))
          [[0.38 0.  ]
           [0.   0.16]]
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
        """Ranks labels by the sigmoid probability that they describe an image.

        Each label is scored on its own, so scores need not sum to one.

        Args:
          images: one image, or an iterable of N images, each a path, URL, bytes, PIL image or array (height, width,
            channels).
          labels: one string or an iterable of strings; a repeated label appears in the result each time.
          hypothesis_template: sentence in which each label replaces `{}`, such as "This is a photo of {}."; None: the
            labels are used as they are.
          top_k: number of labels to keep per image; None: all.
          batch_size: number of images per step; None: `choices.image_batch`.
          timeout: seconds to wait for the download of an image given as a URL.

        Returns:
          For one image, a list of `{"label": str, "score": float}`, highest score first, ties in the order given; for
          an iterable of images, a list of such lists.

        Raises:
          FileNotFoundError: if an image does not exist.
          ValueError: if an image cannot be read, an embedding is not finite, there are no labels, a label is blank, the
            template has no `{}`, or `top_k` or `batch_size` is below 1.

        Example:
          >>> import siglip_jax
          >>> from siglip_jax.assets import EXAMPLES
          >>> ranked = siglip_jax.load().classify(EXAMPLES / "horse.png", ["lemon", "horse", "church"], top_k=2)
          >>> ranked[0]["label"], round(ranked[0]["score"], 2)
          ('horse', 0.38)
        """
        names = check_labels(labels)
        check_count("top_k", top_k)
        prompts = fill_template(hypothesis_template, names)
        scores = self.similarity(images, prompts, batch_size=batch_size, timeout=timeout)
        ranked = [rank(row, names, top_k) for row in scores]
        return ranked[0] if is_one_image(images) else ranked

    @property
    def temperature(self) -> float:
        """The temperature, exp(logit_scale), which cosines are multiplied by."""
        return float(np.exp(np.asarray(self._weights.of("logit_scale")["logit_scale"], np.float32).item()))

    @property
    def logit_bias(self) -> float:
        """The bias that is added to every logit."""
        return float(np.asarray(self._weights.of("logit_bias")["logit_bias"], np.float32).item())

    def with_params(self, params: dict[str, Any]) -> "Siglip":
        """Returns an engine with other parameters that shares this one's compiled code.

        Args:
          params: parameters of the model, a nested dict of arrays with the names and shapes of `self.params`; arrays of
            other dtypes compile again.

        Returns:
          A new `Siglip`; this one is unchanged.

        Example:
          >>> import jax
          >>> import siglip_jax
          >>> siglip = siglip_jax.load()
          >>> halved = siglip.with_params(jax.tree.map(lambda x: x / 2, siglip.params))
          >>> round(siglip.logit_bias / halved.logit_bias, 2)
          2.0
        """
        other = Siglip(self.model, params, self.processor, self.config)
        for name in ("_encode_pixels", "_encode_tokens"):
            other.__dict__[name] = getattr(self, name)
        return other

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes the model and the files of its processor to a directory that `load` reads.

        `transformers` reads the directory of a float model too; that of a quantized model is a format of its own.

        Args:
          directory: path of the directory; it is created if it does not exist.

        Raises:
          ValueError: if the model is quantized and the directory holds a float checkpoint, which is not overwritten.

        Example:
          >>> import tempfile
          >>> import siglip_jax
          >>> siglip = siglip_jax.load()
          >>> with tempfile.TemporaryDirectory() as directory:
          ...     siglip.save_pretrained(directory)
          ...     saved = siglip_jax.load(directory)
          ...     saved.logit_bias == siglip.logit_bias
          True
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
        """Returns the inputs of the image tower for one image, without a batch axis.

        Args:
          image: path, URL, bytes, PIL image or array (height, width, channels).
          timeout: seconds to wait for the download of an image given as a URL.

        Returns:
          One array per name in the image processor's `model_input_names`. For a model of fixed resolution: the pixel
          values alone, (height, width, channels) float32. For one of variable resolution: patches (patches, values),
          their mask (patches,) and the grid (2,).

        Raises:
          FileNotFoundError: if the image does not exist.
          ValueError: if the image cannot be read.

        Example:
          >>> import siglip_jax
          >>> (pixel_values,) = siglip_jax.load().pixels(siglip_jax.assets.EXAMPLES / "horse.png")
          >>> pixel_values.shape
          (64, 64, 3)
        """
        processor = self.processor.image_processor
        loaded = load_image(
            image, timeout=timeout, max_pixels=self.max_pixels, input_data_format=processor.input_data_format
        )
        inputs = processor(loaded, return_tensors="np")
        return tuple(np.asarray(inputs[name])[0] for name in processor.model_input_names)

    def tokens(self, texts: Sequence[str]) -> Arrays:
        """Returns the input of the text tower for texts.

        Args:
          texts: sequence of M strings.

        Returns:
          A tuple of one array: the token ids, (M, length) int32, padded and truncated to the model's length.

        Example:
          >>> import siglip_jax
          >>> (input_ids,) = siglip_jax.load().tokens(["a horse", "a lemon"])
          >>> input_ids.shape
          (2, 16)
        """
        length = self.config.text_config.max_position_embeddings
        return (self.processor(text=list(texts), max_length=length)["input_ids"],)

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
    def _encode_pixels(self) -> Callable[..., Array]:
        """The jitted image tower; `with_params` shares it."""
        return jitted(self.model, "get_image_features", self.choices.image_rows)

    @functools.cached_property
    def _encode_tokens(self) -> Callable[..., Array]:
        """The jitted text tower; `with_params` shares it."""
        return jitted(self.model, "get_text_features", self.choices.text_rows)
