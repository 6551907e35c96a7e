"""The processor of a checkpoint: the files beside its weights, else what is published for a released variant.

Weights of big_vision have no processor beside them, and this package does not read the form of open_clip's tokenizer of
SigLIP 1. The sizes of the model say which released checkpoint it comes from; its image processor is known, and its
tokenizer is fetched from the Hub or its cache.
"""

import os
from pathlib import Path
from typing import Any

from siglip_jax import _hub
from siglip_jax._files import folder_of, read_json
from siglip_jax.configs.configuration import Config, SiglipConfig, TextConfig
from siglip_jax.configs.towers import towers_of
from siglip_jax.configs.variants import VARIANTS, Variant
from siglip_jax.processing.images.base import CONFIG, ImageProcessor, read_settings
from siglip_jax.processing.images.steps import RESAMPLE
from siglip_jax.processing.processor import Missing, SiglipProcessor, image_processor_class
from siglip_jax.processing.text.base import TokenizerBase
from siglip_jax.processing.text.settings import TOKENIZERS, vocabulary_in
from siglip_jax.processing.text.siglip import SiglipTokenizer

_FILES = (*_hub.TOKENIZER_FILES, *_hub.PROCESSOR_FILES)


def processor_beside(
    path: Path,
    config: Config,
    *,
    images: bool = True,
    texts: bool = True,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
) -> SiglipProcessor:
    """Returns the processor of a checkpoint.

    Args:
      path: local directory or weights file of the checkpoint.
      config: configuration of the whole model or of the tower.
      images: whether images are to be processed; False leaves the image processor out.
      texts: whether texts are to be processed; False leaves the tokenizer out.
      local_files_only: whether a tokenizer that is not beside the weights is only looked for in the cache.
      cache_dir: folder of the cache; None: that of `huggingface_hub`.
      token: token for the Hub; None: that of `HF_TOKEN` or of the login.

    Returns:
      A processor; a use of the part that is left out raises an error that says so.

    Raises:
      FileNotFoundError: if a part is neither beside the weights nor published.
      ValueError: if a file has invalid contents.

    Example:
      >>> from siglip_jax.assets import BUNDLED_MODEL
      >>> from siglip_jax.configs import SiglipConfig
      >>> processor = processor_beside(BUNDLED_MODEL, SiglipConfig.from_pretrained(BUNDLED_MODEL), texts=False)
      >>> processor.image_processor.size
      {'height': 64, 'width': 64}
    """
    directory = folder_of(path)
    known = variants_like(config)
    none = not any((directory / name).is_file() for name in _FILES)
    if none and images and texts and not known:
        raise FileNotFoundError(
            f"{directory}: load needs the tokenizer and the image processor beside the weights, got neither; save them"
            " there with SiglipProcessor.save_pretrained, or use from_pretrained of the model class"
        )
    pixels: Any = Missing(
        f"{path}: the checkpoint must have an image tower to process images, got the text tower alone"
    )
    words: Any = Missing(f"{path}: the checkpoint must have a text tower to process texts, got the image tower alone")
    if images:
        pixels = image_processor_beside(directory, config)
    if texts:
        hub: Any = {"local_files_only": local_files_only, "cache_dir": cache_dir, "token": token}
        words = tokenizer_beside(directory, config, **hub)
    _, text = towers_of(config)
    length = text.max_position_embeddings if texts and text is not None else None
    return SiglipProcessor(pixels, words, max_length=length)


def variants_like(config: Config) -> tuple[Variant, ...]:
    """Returns the released checkpoints that a model may come from; images of another size make no difference.

    Args:
      config: configuration of the whole model or of one tower.
    """
    whole = isinstance(config, SiglipConfig)
    towers = [config.text_config, config.vision_config] if isinstance(config, SiglipConfig) else [config]

    def fits(variant: Variant) -> bool:
        if config.model_type.partition("_")[0] != variant.model_type and not isinstance(config, TextConfig):
            return False
        for tower in towers:
            fields = dict(variant.text if isinstance(tower, TextConfig) else variant.vision)
            if whole:  # the vocabulary says enough
                fields.pop("image_size", None)
            if any(getattr(tower, name, None) != value for name, value in fields.items()):
                return False
        return True

    return tuple(variant for variant in VARIANTS if fits(variant))


def image_processor_beside(directory: Path, config: Config) -> ImageProcessor:
    """Returns the image processor of a checkpoint: of the files beside the weights, else the published one.

    Args:
      directory: directory of the weights.
      config: configuration of the whole model or of the image tower.

    Raises:
      FileNotFoundError: if there are no files and how images are resized does not follow from the configuration.
      ValueError: if a file has invalid contents.
    """
    try:
        file, settings = read_settings(directory)
    except FileNotFoundError:
        filters = {variant.resample for variant in variants_like(config)}
        if len(filters) != 1:
            raise FileNotFoundError(
                f"{directory}: load needs the image processor, {CONFIG}, beside the weights, got none, and how they are"
                " resized does not follow from the weights; save it there with save_pretrained, as that of"
                " SiglipImageProcessor(size=(224, 224), resample=3)"
            ) from None
        settings = published_settings(config, filters.pop())
        return image_processor_class(settings, None).from_dict(settings)
    return image_processor_class(settings, None).from_file(file, settings)


def published_settings(config: Config, resample: str) -> dict[str, Any]:
    """Returns the options of the image processor that is published with the released checkpoints.

    Args:
      config: configuration of the whole model or of the image tower.
      resample: filter that images are resized with, "bicubic" or "bilinear".
    """
    vision: Any = towers_of(config)[0]
    steps = {"resample": RESAMPLE[resample], "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if vision.model_type.startswith("siglip2"):
        patches = {"patch_size": vision.patch_size, "max_num_patches": vision.num_patches}
        return steps | patches | {"image_processor_type": "Siglip2ImageProcessor"}
    size = {"height": vision.image_size, "width": vision.image_size}
    return steps | {"size": size, "image_processor_type": "SiglipImageProcessor"}


def tokenizer_beside(directory: Path, config: Config, **hub: Any) -> TokenizerBase:
    """Returns the tokenizer of a checkpoint: of the files beside the weights, else the published one.

    Args:
      directory: directory of the weights.
      config: configuration of the whole model or of the text tower.
      **hub: `local_files_only`, `cache_dir` and `token`, as for `processor_beside`.

    Raises:
      FileNotFoundError: if there are no files, and no released checkpoint has such a text tower or its tokenizer cannot
        be fetched.
      ValueError: if a file has invalid contents.
    """
    source = next(iter(variants_like(config)), None)
    try:
        found = vocabulary_in(directory)
        if source is None or found != TOKENIZERS or not _is_unigram(directory / TOKENIZERS):
            return SiglipTokenizer.from_pretrained(directory)
    except FileNotFoundError as error:
        if source is None:
            raise FileNotFoundError(
                f"{directory}: load needs the tokenizer beside the weights, got none ({error}); save it there with"
                " SiglipTokenizer.save_pretrained, or load the image tower alone"
            ) from None
    try:
        return SiglipTokenizer.from_pretrained(_hub.resolve(source.name, **hub))
    except (FileNotFoundError, ValueError) as error:
        raise FileNotFoundError(
            f"{directory}: load needs the tokenizer of {source.name} beside the weights, got none; copy its files there"
            f" ({error})"
        ) from error


def _is_unigram(file: Path) -> bool:
    """Returns whether a `tokenizer.json` holds a SentencePiece vocabulary, as open_clip writes that of SigLIP 1."""
    model = read_json(file, "it holds the vocabulary").get("model")
    return isinstance(model, dict) and model.get("type") == "Unigram"
