"""Texts and images to the model's inputs in one call; mirrors `transformers.SiglipProcessor` and `Siglip2Processor`.

It differs from the references in this: texts are always padded and cut to the model's length unless the call says
otherwise, because that is how the model was trained, and without an attention mask, because it attends to the padding.
The length is read from the model's `config.json`, so that a model of 16 positions gets 16. An unknown argument is an
error.
"""

import inspect
import json
import os
from pathlib import Path
from typing import Any

import jax

from siglip_jax import _hub as hub
from siglip_jax._checks import check_choice, refuse_unknown
from siglip_jax._files import write_atomically
from siglip_jax.processing.batch import Batch
from siglip_jax.processing.images.base import PROCESSOR_CONFIG, ImageProcessor, kind_of, read_settings
from siglip_jax.processing.images.siglip import SiglipImageProcessor, SiglipImageProcessorPil
from siglip_jax.processing.images.siglip2 import Siglip2ImageProcessor
from siglip_jax.processing.text.base import TokenizerBase
from siglip_jax.processing.text.settings import DEFAULT_LENGTH, text_length
from siglip_jax.processing.text.siglip import SiglipTokenizer

_TEXT = tuple(
    name
    for name in inspect.signature(TokenizerBase.__call__).parameters
    if name not in ("self", "text", "return_tensors")
)


class SiglipProcessor:
    """A tokenizer and an image processor.

    Attributes:
      max_length: what texts are padded and cut to, in tokens.
    """

    model_input_names = ["pixel_values", "input_ids"]

    def __init__(
        self,
        image_processor: ImageProcessor,
        tokenizer: TokenizerBase,
        *,
        max_length: int | None = None,
    ) -> None:
        """Keeps both; `max_length` is the tokenizer's own unless given, and 64 if that knows none."""
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        known = tokenizer.model_max_length if 0 < tokenizer.model_max_length < 10**9 else DEFAULT_LENGTH
        self.max_length = known if max_length is None else max_length

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
        """Makes the model's inputs of what is given.

        Args:
          images: anything `load_image` takes, or a list of such.
          text: a text, or a list of texts.
          return_tensors: `"np"`, `"jax"`, or None for lists.
          text_kwargs: options of the tokenizer's call, such as `padding`, `truncation`, `max_length`.
          images_kwargs: options of the image processor, such as `size`, `do_rescale`, `data_format`.
          **options: of either, flat.

        Returns:
          `input_ids` (texts, positions) int32, and what the image processor makes: `pixel_values` (images, height,
          width, channels) float32, or the patches, masks and grids of `Siglip2ImageProcessor`.

        Raises:
          ValueError: if there is neither, for an unknown option, and for anything that is not a text or an image.
        """
        if images is None and text is None:
            raise ValueError("SiglipProcessor: expected images or text or both, found neither")
        known = self.image_processor.defaults
        refuse_unknown(options, [*_TEXT, *known], "SiglipProcessor")
        for_text = {k: v for k, v in options.items() if k in _TEXT} | (text_kwargs or {})
        for_images = {k: v for k, v in options.items() if k in known} | (images_kwargs or {})
        refuse_unknown(for_text, [*_TEXT, "return_tensors"], "text_kwargs")
        refuse_unknown(for_images, known, "images_kwargs")
        batch = Batch()
        if text is not None:
            usual: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_attention_mask": False}
            usual |= {"return_tensors": return_tensors, "max_length": self.max_length}
            if isinstance(text, str):  # one text is a batch of one, as an image is
                text = [text]
                for_text |= {"text_pair": [for_text["text_pair"]]} if isinstance(for_text.get("text_pair"), str) else {}
            batch.update(self.tokenizer(text, **usual | for_text))
        if images is not None:
            batch.update(self.image_processor(images, **{"return_tensors": return_tensors} | for_images))
        return batch

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **options: Any) -> Any:
        """Same as the tokenizer's."""
        return self.tokenizer.decode(token_ids, skip_special_tokens, **options)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **options: Any) -> list[str]:
        """Same as the tokenizer's."""
        return self.tokenizer.batch_decode(sequences, skip_special_tokens, **options)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        backend: str | None = None,
    ) -> "SiglipProcessor":
        """Reads a directory or Hub repository with a tokenizer and an image processor of version 4 or 5.

        Args:
          backend: `"pil"` resizes with Pillow, `"jax"` on the accelerator; None takes Pillow where the default device
            is a CPU. The values are the same. Images of variable resolution always go through Pillow.

        Raises:
          FileNotFoundError: if a file is missing.
          ValueError: if a file cannot be made sense of.
        """
        check_choice("backend", backend, (None, "pil", "jax"))
        directory = hub.resolve(name_or_path, revision=revision, local_files_only=local_files_only)
        if not directory.is_dir():
            raise ValueError(f"{directory}: expected the directory of a processor, found a file")
        tokenizer, settings = SiglipTokenizer.from_pretrained(directory), read_settings(directory)
        if (kind_of(settings) or "").startswith("Siglip2"):
            if backend == "jax":
                raise ValueError("backend: expected 'pil' or None for images of variable resolution, found 'jax'")
            kind: type[ImageProcessor] = Siglip2ImageProcessor
        elif backend == "pil" or backend is None and jax.default_backend() == "cpu":
            kind = SiglipImageProcessorPil
        else:
            kind = SiglipImageProcessor
        return cls(kind.from_dict(settings), tokenizer, max_length=text_length(directory))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes the tokenizer, `processor_config.json` for version 5, and `preprocessor_config.json` for version 4."""
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(directory, model_max_length=self.max_length)
        self.image_processor.save_pretrained(directory)
        nested = {
            "image_processor": self.image_processor.to_dict(),
            "processor_class": self.image_processor.processor_type,
        }
        text = json.dumps(nested, indent=2, sort_keys=True) + "\n"
        write_atomically(directory / PROCESSOR_CONFIG, text.encode())
