"""Turns texts and images into model inputs in one call; mirrors `transformers.SiglipProcessor` and `Siglip2Processor`.

Differences from the reference: texts are padded and truncated to the length of the model by default, because the
model was trained that way, and no attention mask is returned, because the model attends to the padding. The length is
read from the model's `config.json`, so a model of 16 positions gets 16 tokens. An unknown argument raises an error.
"""

import inspect
import json
import os
from collections.abc import Mapping
from typing import Any

import jax

from siglip_jax import _hub as hub
from siglip_jax._checks import check_choice, refuse_unknown
from siglip_jax._files import output_path, write_atomically
from siglip_jax.processing.batch import Batch
from siglip_jax.processing.images.base import PROCESSOR_CONFIG, ImageProcessor, kind_of, read_settings
from siglip_jax.processing.images.siglip import SiglipImageProcessor, SiglipImageProcessorPil
from siglip_jax.processing.images.siglip2 import Siglip2ImageProcessor
from siglip_jax.processing.text.base import TokenizerBase
from siglip_jax.processing.text.settings import DEFAULT_LENGTH, TOKENIZERS, text_length, vocabulary_in
from siglip_jax.processing.text.siglip import SiglipTokenizer
from siglip_jax.processing.text.siglip2 import Siglip2Tokenizer

_TEXT = tuple(
    name
    for name in inspect.signature(TokenizerBase.__call__).parameters
    if name not in ("self", "text", "return_tensors")
)


class Missing:
    """Stands for the part of a processor that a checkpoint lacks: its use raises a `ValueError` that says so."""

    def __init__(self, message: str) -> None:
        """Keeps the message of the error."""
        self._message = message

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Raises the error."""
        raise ValueError(self._message)

    def __getattr__(self, name: str) -> Any:
        """Raises the error, except for names with which Python asks for protocols."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise ValueError(self._message)

    def __repr__(self) -> str:
        """Returns "None"."""
        return "None"


def image_processor_class(settings: Mapping[str, Any], backend: str | None) -> type[ImageProcessor]:
    """Returns the class of the image processor of some options.

    Args:
      settings: options as a file holds them.
      backend: "pil" or "jax"; None: "pil" if the default device is a CPU, else "jax".

    Raises:
      ValueError: if the backend is "jax" for images of variable resolution.
    """
    if (kind_of(settings) or "").startswith("Siglip2"):
        if backend == "jax":
            raise ValueError("backend must be 'pil' or None for images of variable resolution, got 'jax'")
        return Siglip2ImageProcessor
    pil = backend == "pil" or backend is None and jax.default_backend() == "cpu"
    return SiglipImageProcessorPil if pil else SiglipImageProcessor


class SiglipProcessor:
    """Combines a tokenizer and an image processor.

    Attributes:
      image_processor: the processor of images, such as `SiglipImageProcessor` or `Siglip2ImageProcessor`.
      tokenizer: the tokenizer of texts, a `SiglipTokenizer` or `Siglip2Tokenizer`.
      max_length: length in tokens to which texts are padded and truncated by default.
      model_input_names: names of the arrays that a call with texts and images returns.

    Example:
      >>> from siglip_jax.assets import BUNDLED_MODEL, EXAMPLES
      >>> processor = SiglipProcessor.from_pretrained(BUNDLED_MODEL)
      >>> batch = processor(images=EXAMPLES / "horse.png", text=["a horse", "a bat"])
      >>> batch.pixel_values.shape, batch.input_ids.shape
      ((1, 64, 64, 3), (2, 16))
    """

    def __init__(
        self,
        image_processor: ImageProcessor | Missing,
        tokenizer: TokenizerBase | Missing,
        *,
        max_length: int | None = None,
    ) -> None:
        """Stores both parts.

        Args:
          image_processor: the processor of images, or a `Missing` in its place.
          tokenizer: the tokenizer of texts, or a `Missing` in its place.
          max_length: length in tokens to which texts are padded and truncated by default; None: the tokenizer's
            `model_max_length`, or 64 if it has none.
        """
        self.image_processor: Any = image_processor
        self.tokenizer: Any = tokenizer
        if max_length is None:
            known = 0 if isinstance(tokenizer, Missing) else tokenizer.model_max_length
            max_length = known if 0 < known < 10**9 else DEFAULT_LENGTH
        self.max_length = max_length

    def __repr__(self) -> str:
        """Returns the class with its parts."""
        parts = f"image_processor={self.image_processor!r}, tokenizer={self.tokenizer!r}"
        return f"{type(self).__name__}({parts}, max_length={self.max_length})"

    @property
    def model_input_names(self) -> list[str]:
        """Names of the arrays that a call with texts and images returns."""
        images = [] if isinstance(self.image_processor, Missing) else self.image_processor.model_input_names
        return [*images, *([] if isinstance(self.tokenizer, Missing) else ["input_ids"])]

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        *,
        return_tensors: str | None = "np",
        text_kwargs: dict[str, Any] | None = None,
        images_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> Batch:
        """Returns the model inputs of images, texts or both.

        One image or one text becomes a batch of one. Images and texts are processed independently and need not be
        equally many.

        Args:
          images: an image or a list of images, each anything that `load_image` accepts; None: no images.
          text: a text or a list of texts; None: no texts.
          return_tensors: kind of the values: "np" for numpy arrays, "jax" for JAX arrays, None for lists.
          text_kwargs: keyword arguments of the tokenizer's call only, such as `padding`, `truncation` or `max_length`;
            None: none.
          images_kwargs: keyword arguments of the image processor's call only, such as `size`, `do_rescale` or
            `data_format`; None: none.
          **options: keyword arguments of the tokenizer's or the image processor's call; their names do not overlap. A
            warning says once that a text is cut, unless `truncation` is given.

        Returns:
          A `Batch` of `input_ids` (texts, positions) int32 if there are texts, and, if there are images, of
          `pixel_values` (images, height, width, channels) float32 or the three arrays of `Siglip2ImageProcessor`.

        Raises:
          FileNotFoundError: if a path or URL of an image does not exist.
          ValueError: if neither images nor texts are passed, for an option that is unknown or given twice, and for a
            value that is not a text or an image.
        """
        if images is None and text is None:
            raise ValueError("SiglipProcessor: images or text must be given, got neither; pass images, text or both")
        known = {} if isinstance(self.image_processor, Missing) else self.image_processor.defaults
        refuse_unknown(options, [*_TEXT, *known], "SiglipProcessor")
        for group, values in (("text_kwargs", text_kwargs), ("images_kwargs", images_kwargs)):
            if twice := sorted(set(values or {}) & set(options)):
                raise ValueError(f"{twice[0]} must be given once, got it as an argument and in {group}; leave one out")
        for_text = {k: v for k, v in options.items() if k in _TEXT} | (text_kwargs or {})
        for_images = {k: v for k, v in options.items() if k in known} | (images_kwargs or {})
        refuse_unknown(for_text, [*_TEXT, "return_tensors"], "text_kwargs")
        refuse_unknown(for_images, known, "images_kwargs")
        batch = Batch()
        if text is not None:
            usual: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_attention_mask": False}
            usual |= {"return_tensors": return_tensors, "max_length": self.max_length}
            usual["verbose"] = None if "truncation" in for_text else True
            if isinstance(text, str):  # one text is a batch of one, as an image is
                text = [text]
                for_text |= {"text_pair": [for_text["text_pair"]]} if isinstance(for_text.get("text_pair"), str) else {}
            batch.update(self.tokenizer(text, **usual | for_text))
        if images is not None:
            batch.update(self.image_processor(images, **{"return_tensors": return_tensors} | for_images))
        return batch

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **options: Any) -> Any:
        """Returns the text of one row of token ids, or a list of texts of several rows.

        Args:
          token_ids: token ids, (positions,) or (texts, positions), as an array or lists; or a single id.
          skip_special_tokens: whether special tokens such as the end of the text and padding are left out.
          **options: further keyword arguments of the tokenizer's `decode`: `clean_up_tokenization_spaces` and
            `spaces_between_special_tokens`.

        Returns:
          A string for one row, a list of strings for several.

        Raises:
          ValueError: for an id outside the vocabulary.

        Example:
          >>> from siglip_jax.assets import BUNDLED_MODEL
          >>> processor = SiglipProcessor.from_pretrained(BUNDLED_MODEL)
          >>> processor.decode(processor(text="A horse!").input_ids[0], skip_special_tokens=True)
          'a horse'
        """
        return self.tokenizer.decode(token_ids, skip_special_tokens, **options)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **options: Any) -> list[str]:
        """Returns the texts of several rows of token ids.

        Args:
          sequences: token ids of each text, (texts, positions), as an array or lists.
          skip_special_tokens: whether special tokens such as the end of the text and padding are left out.
          **options: further keyword arguments of the tokenizer's `batch_decode`: `clean_up_tokenization_spaces` and
            `spaces_between_special_tokens`.

        Returns:
          A list with one string per row.

        Raises:
          ValueError: for an id outside the vocabulary.
        """
        return self.tokenizer.batch_decode(sequences, skip_special_tokens, **options)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        backend: str | None = None,
        **overrides: Any,
    ) -> "SiglipProcessor":
        """Returns the processor of a directory or Hub repository, in the files of `transformers` 4 or 5.

        Args:
          name_or_path: path of a directory, or a Hub name such as "google/siglip-base-patch16-224".
          revision: branch, tag or commit of a Hub repository; None: its `main`. A local path has none.
          local_files_only: whether to use only files in the local Hub cache and make no request.
          backend: "pil" resizes on the host with Pillow, "jax" on the default device with the same values; None: "pil"
            if the default device is a CPU, else "jax". Images of variable resolution always go through Pillow.
          **overrides: options of the image processor, such as `size` or `do_rescale`, and arguments of the tokenizer,
            such as `padding_side`, which take precedence over the files.

        Returns:
          A `SiglipProcessor` whose `max_length` is `model_max_length` if that is given, else the number of text
          positions in `config.json`, or the tokenizer's if that file is missing.

        Raises:
          FileNotFoundError: if the directory, the repository or one of its files is missing.
          ValueError: if `name_or_path` is a file, a file has invalid contents, `backend` does not fit the model, or an
            override is unknown or invalid.

        Example:
          >>> from siglip_jax.assets import BUNDLED_MODEL
          >>> SiglipProcessor.from_pretrained(BUNDLED_MODEL, do_normalize=False).image_processor.do_normalize
          False
        """
        check_choice("backend", backend, (None, "pil", "jax"))
        directory = hub.resolve(name_or_path, revision=revision, local_files_only=local_files_only)
        if not directory.is_dir():
            raise ValueError(f"{directory}: name_or_path must be the directory of a processor, got a file")
        vocabulary, (file, settings) = vocabulary_in(directory), read_settings(directory)
        kind = image_processor_class(settings, backend)
        names = (Siglip2Tokenizer if vocabulary == TOKENIZERS else SiglipTokenizer).setting_names()
        refuse_unknown(overrides, [*names, *kind.defaults], "SiglipProcessor.from_pretrained")
        tokenizer = SiglipTokenizer.from_pretrained(directory, **{k: v for k, v in overrides.items() if k in names})
        images = kind.from_file(file, settings, **{k: v for k, v in overrides.items() if k in kind.defaults})
        length = None if overrides.get("model_max_length") else text_length(directory)
        return cls(images, tokenizer, max_length=length)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes the files of the tokenizer and the image processor, which `transformers` 4 and 5 read.

        `processor_config.json` is the file that version 5 reads, `preprocessor_config.json` the one of version 4.

        Args:
          save_directory: path of the directory; it is created if missing.
        """
        directory = output_path(save_directory, "save_directory")
        directory.mkdir(parents=True, exist_ok=True)
        if not isinstance(self.tokenizer, Missing):
            self.tokenizer.save_pretrained(directory, model_max_length=self.max_length)
        if isinstance(self.image_processor, Missing):
            return
        self.image_processor.save_pretrained(directory)
        nested = {
            "image_processor": self.image_processor.to_dict(),
            "processor_class": self.image_processor.processor_type,
        }
        text = json.dumps(nested, indent=2, sort_keys=True) + "\n"
        write_atomically(directory / PROCESSOR_CONFIG, text.encode())
