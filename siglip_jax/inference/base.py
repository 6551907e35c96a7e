"""What an engine holds and what everything else is made of: the module, its parameters and its processor."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Array

from siglip_jax._files import MAX_PIXELS
from siglip_jax.checkpoints import Checkpoint, write_checkpoint
from siglip_jax.checkpoints.formats import quantized
from siglip_jax.checkpoints.keymap import CLASSIFIER, TEXT, VISION
from siglip_jax.configs.configuration import Config
from siglip_jax.configs.towers import tower_config
from siglip_jax.inference.choices import choose, in_brief
from siglip_jax.inference.encoder import Encoder, jitted
from siglip_jax.inference.stream import Arrays
from siglip_jax.inference.towers import check_part, check_whole, features, label_logits, parameters_of
from siglip_jax.inference.weights import Weights
from siglip_jax.models.pretrained import PretrainedModule
from siglip_jax.params import checksum
from siglip_jax.processing import SiglipProcessor, load_image
from siglip_jax.quantization.layers import holds_quantized

E = TypeVar("E", bound="Engine")


class Engine:
    """A model with its parameters and its processor; `Siglip` adds what users call on images and texts."""

    def __init__(
        self,
        model: PretrainedModule,
        params: dict[str, Any] | Weights,
        processor: SiglipProcessor,
        config: Config,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Builds the engine; nothing is compiled or moved to the device yet.

        Args:
          model: linen module to apply, of one tower, both, or a classifier; its dtype is the compute dtype.
          params: parameters of the module, a nested dict of arrays, or `Weights`, which are placed on the device when
            they are first used.
          processor: `SiglipProcessor` that turns images and texts into arrays.
          config: configuration of the model, such as a `SiglipConfig`.
          max_pixels: largest number of pixels of an encoded image.

        Raises:
          ValueError: if the module's attention implementation does not run on this device.
        """
        self.model, self.processor, self.max_pixels = model, processor, max_pixels
        self.config: Any = config
        self.choices = choose(config, model.dtype, model.attn_implementation, model.mesh)
        self._weights = params if isinstance(params, Weights) else Weights(params)

    def __repr__(self) -> str:
        """Returns the model's kind and sizes, its dtype and its device, without reading weights."""
        return f"{type(self).__name__}({in_brief(self.model, self.config)}, device={self.choices.device})"

    @property
    def params(self) -> dict[str, Any]:
        """The parameters as a nested dict of arrays on the device; reading it loads both towers."""
        return self._weights.all()

    @property
    def image_encoder(self) -> Encoder:
        """The image tower as a function from arrays to embeddings; `pixels` returns the arrays of an image."""
        check_part(self.model, VISION)
        params, width = (
            self._weights.of(*parameters_of(self.model, VISION)),
            tower_config(self.config, VISION).hidden_size,
        )
        return Encoder(self._encode_pixels, params, width, self.choices.image_batch, "images")

    @property
    def text_encoder(self) -> Encoder:
        """The text tower as a function from token ids to embeddings; `tokens` returns the ids of texts."""
        check_part(self.model, TEXT)
        params, width = (
            self._weights.of(*parameters_of(self.model, TEXT)),
            tower_config(self.config, TEXT).embedding_size,
        )
        return Encoder(self._encode_tokens, params, width, self.choices.text_batch, "texts")

    @property
    def label_encoder(self) -> Encoder:
        """The classifier as a function from arrays to logits; `pixels` returns the arrays of an image."""
        check_part(self.model, CLASSIFIER)
        if not (count := self.config.num_labels):
            raise ValueError("num_labels must be at least 1 to classify images, got 0; load a model with a classifier")
        params = self._weights.of(VISION, CLASSIFIER)
        return Encoder(self._classify_pixels, params, count, self.choices.image_batch, "images")

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the names, dtypes, shapes and values of all parameters, which are read for it once."""
        return checksum(self.params)

    @property
    def temperature(self) -> float:
        """The temperature, exp(logit_scale), which cosines are multiplied by."""
        check_whole(self.model)
        return float(np.exp(np.asarray(self._weights.of("logit_scale")["logit_scale"], np.float32).item()))

    @property
    def logit_bias(self) -> float:
        """The bias that is added to every logit."""
        check_whole(self.model)
        return float(np.asarray(self._weights.of("logit_bias")["logit_bias"], np.float32).item())

    def with_params(self: E, params: dict[str, Any]) -> E:
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
        other = type(self)(self.model, params, self.processor, self.config)
        for name in ("_encode_pixels", "_encode_tokens", "_classify_pixels"):
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
        check_part(self.model, TEXT)
        length = tower_config(self.config, TEXT).max_position_embeddings
        return (self.processor(text=list(texts), max_length=length)["input_ids"],)

    @functools.cached_property
    def _encode_pixels(self) -> Callable[..., Array]:
        """The jitted image tower; `with_params` shares it."""
        return jitted(*features(self.model, VISION), self.choices.image_rows)

    @functools.cached_property
    def _encode_tokens(self) -> Callable[..., Array]:
        """The jitted text tower; `with_params` shares it."""
        return jitted(*features(self.model, TEXT), self.choices.text_rows)

    @functools.cached_property
    def _classify_pixels(self) -> Callable[..., Array]:
        """The jitted classifier; `with_params` shares it."""
        return jitted(self.model, label_logits, self.choices.image_rows, normalized=False)
