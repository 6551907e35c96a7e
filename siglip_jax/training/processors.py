"""Processors of a run: for images of another size, and what makes two prepare images and texts alike."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from siglip_jax.processing import SiglipProcessor


def processor_of_size(processor: SiglipProcessor, size: int) -> SiglipProcessor:
    """Returns a processor that makes images of a width and height in pixels."""
    images = processor.image_processor
    if images.size != {"height": size, "width": size}:
        images = type(images).from_dict(images.to_dict() | {"size": {"height": size, "width": size}})
    return SiglipProcessor(images, processor.tokenizer, max_length=processor.max_length)


def processor_fingerprint(processor: SiglipProcessor) -> str:
    """Returns a hash of what makes pixels and token ids of images and texts, in hexadecimal."""
    images, tokenizer = processor.image_processor.to_dict(), processor.tokenizer
    digest = hashlib.sha256(json.dumps(_of_images(images), default=str).encode())
    digest.update(Path(tokenizer.vocab_file).read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # texts that are cut
        digest.update(np.asarray(processor(text=list(_PROBES))["input_ids"]).tobytes())
    return digest.hexdigest()


def _of_images(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of an image processor that its arrays depend on."""
    patches = {name: options[name] for name in ("patch_size", "max_num_patches") if name in options}
    return {name: options.get(name) for name in _IMAGE_OPTIONS} | patches


_IMAGE_OPTIONS = ("size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
_PROBES = ("", "A photo of two Cats, 37 °C!", "<pad> </s> <eos> <unk>", "naïve 日本 \n\t ½", "word " * 100)
