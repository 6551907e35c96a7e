"""The inference engine: pictures and texts in, normalised embeddings, probabilities and ranked labels out.

It has no single counterpart in `transformers`; it does what `AutoProcessor` and `SiglipModel` do together there.
Everything is batched and jitted, batches have a few fixed sizes so that little is compiled, and pictures are decoded in
threads ahead of the device.
"""

import dataclasses
import functools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from siglip_jax.checkpoints import quantized
from siglip_jax.configuration import Siglip2Config, SiglipConfig, read_config
from siglip_jax.hub import resolve
from siglip_jax.inference.quantization import holds_quantized, load_quantized
from siglip_jax.inference.stream import (
    Arrays,
    as_images,
    as_texts,
    batches,
    in_threads,
    is_one_image,
    run_batches,
    slices,
)
from siglip_jax.models import Siglip2Model, SiglipModel
from siglip_jax.models.siglip import normalize
from siglip_jax.processing import SiglipProcessor, load_image

EMBEDDED_MODEL = Path(__file__).parent.parent / "embedded"
IMAGE_BATCH = {"cpu": 8}  # on a CPU larger batches fall out of the cache
TEXT_BATCH = {"cpu": 32}
ACCELERATOR_BATCH = 64
CACHED_TEXT_LISTS = 8

ImageSource = str | bytes | os.PathLike | PIL.Image.Image | np.ndarray | jax.Array
Images = ImageSource | Iterable[ImageSource]
Texts = str | Iterable[str]
Model = SiglipModel | Siglip2Model
OnUnreadable = Callable[[int, Exception], None]


@dataclasses.dataclass(frozen=True)
class Siglip:
    """A model with its parameters and its processor; `load` makes one.

    Pictures are a path, URL, bytes, PIL image or array, or an iterable of them. An iterable may be a generator: it is
    read a few batches ahead, never as a whole. One picture, or one string, counts as a list of one, so the first axis
    of every result is there; only `classify` answers a single picture with a single list.
    """

    model: Model
    params: dict[str, Any]
    processor: SiglipProcessor
    config: SiglipConfig
    _text_cache: OrderedDict = dataclasses.field(default_factory=OrderedDict, init=False, repr=False, compare=False)

    def encode_image(
        self,
        images: Images,
        *,
        batch_size: int | None = None,
        timeout: float = 10.0,
        on_unreadable: OnUnreadable | None = None,
    ) -> Float[np.ndarray, "images embed"]:
        """Returns L2-normalised image embeddings; no pictures give an array of no rows.

        Args:
          images: one picture or an iterable of N.
          batch_size: pictures per step; 8 by default on a CPU, 64 elsewhere.
          timeout: seconds to wait for a URL.
          on_unreadable: called with the position and the error of a picture that cannot be read, whose row is then NaN;
            without it the error is raised.

        Raises:
          FileNotFoundError, ValueError: if a picture is missing or cannot be read.
        """
        batch_size = _batch_size(batch_size, IMAGE_BATCH)
        unreadable: list[int] = []

        def pixels() -> Iterator[Arrays]:
            work = functools.partial(self._pixels, timeout=timeout)
            workers = min(os.cpu_count() or 1, 32)
            futures = in_threads(work, as_images(images), workers=workers, ahead=max(2 * batch_size, workers))
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

        width = self.config.vision_config.hidden_size
        function = functools.partial(self._encode_pixels, self.params)
        rows = run_batches(function, batches(pixels(), batch_size), batch_size, width)
        if not unreadable:
            return rows
        every = np.full((len(rows) + len(unreadable), width), np.nan, np.float32)
        every[np.setdiff1d(np.arange(len(every)), unreadable)] = rows
        return every

    def encode_text(self, texts: Texts, *, batch_size: int | None = None) -> Float[np.ndarray, "texts embed"]:
        """Returns L2-normalised text embeddings; texts are padded and truncated to the model's length.

        Args:
          texts: one string or an iterable of M.
          batch_size: texts per step; 32 by default on a CPU, 64 elsewhere.

        Raises:
          ValueError: if something in `texts` is not a string.
        """
        found = as_texts(texts)
        batch_size = _batch_size(batch_size, TEXT_BATCH)
        length = self.config.text_config.max_position_embeddings
        tokens = (
            (self.processor(text=list(found[i : i + batch_size]), max_length=length)["input_ids"],)
            for i in range(0, len(found), batch_size)
        )
        function = functools.partial(self._encode_tokens, self.params)
        return run_batches(function, tokens, batch_size, self.config.text_config.embedding_size)

    def embed_pixels(self, *arrays: np.ndarray, batch_size: int | None = None) -> Float[np.ndarray, "images embed"]:
        """Returns L2-normalised embeddings of pictures that the processor has made into arrays.

        Args:
          *arrays: one for each of the image processor's `model_input_names`, in their order; of a model of fixed
            resolution the pixel values alone, (N, H, W, C) float32.
          batch_size: as in `encode_image`.
        """
        batch_size = _batch_size(batch_size, IMAGE_BATCH)
        function = functools.partial(self._encode_pixels, self.params)
        return run_batches(function, slices(arrays, batch_size), batch_size, self.config.vision_config.hidden_size)

    def embed_tokens(
        self, input_ids: Int[np.ndarray, "texts length"], *, batch_size: int | None = None
    ) -> Float[np.ndarray, "texts embed"]:
        """Returns L2-normalised embeddings of texts that the tokenizer has made into ids, padded to the model's length.

        Args:
          input_ids: of M texts.
          batch_size: as in `encode_text`.
        """
        batch_size = _batch_size(batch_size, TEXT_BATCH)
        function = functools.partial(self._encode_tokens, self.params)
        return run_batches(
            function, slices((input_ids,), batch_size), batch_size, self.config.text_config.embedding_size
        )

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
        the pictures. The other arguments are those of `encode_image`.
        """
        text_embeds = self._remembered_text(as_texts(texts))
        image_embeds = self.encode_image(images, batch_size=batch_size, timeout=timeout, on_unreadable=on_unreadable)
        return probabilities(image_embeds @ text_embeds.T, self.logit_scale, self.logit_bias)

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
        """Ranks labels for a picture: a list of `{"label", "score"}`, best first; for an iterable a list of such lists.

        Args:
          images: one picture or an iterable of N.
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
    def logit_scale(self) -> float:
        """The temperature as a factor, that is, after the exponential."""
        return float(np.exp(np.asarray(self.params["logit_scale"], np.float32).item()))

    @property
    def logit_bias(self) -> float:
        """The bias, added to every logit."""
        return float(np.asarray(self.params["logit_bias"], np.float32).item())

    def with_params(self, params: dict[str, Any]) -> "Siglip":
        """Returns the same model with other parameters of the same shapes; nothing is compiled again."""
        other = dataclasses.replace(self, params=params)
        for name in ("_encode_pixels", "_encode_tokens"):
            other.__dict__[name] = getattr(self, name)
        return other

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes the model and the files of its processor, for `load`; float models also for `transformers`.

        Raises:
          ValueError: if the model is quantized and the directory holds a float checkpoint, which it must not replace.
        """
        if is_quantized := holds_quantized(self.params):
            quantized.check_place(Path(directory))  # before anything is written
        self.processor.save_pretrained(directory)
        if is_quantized:
            quantized.write(Path(directory), self.model.config, self.params)
        else:
            self.model.save_pretrained(directory, self.params)

    def _pixels(self, image: Any, timeout: float) -> Arrays:
        loaded = load_image(image, timeout=timeout)
        processor = self.processor.image_processor
        inputs = processor(loaded, return_tensors="np")
        return tuple(np.asarray(inputs[name])[0] for name in processor.model_input_names)

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
        return jax.jit(functools.partial(_embed, self.model, "get_image_features"))

    @functools.cached_property
    def _encode_tokens(self) -> Callable[..., Array]:
        return jax.jit(functools.partial(_embed, self.model, "get_text_features"))


def load(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    dtype: Any = None,
    quantization: str | None = None,
    attn_implementation: str = "auto",
    mesh: Mesh | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Siglip:
    """Loads a model with its processor, ready to use.

    Args:
      name_or_path: a Hub name, a local directory or a weights file; by default the small model inside this package.
      dtype: the type of the parameters and of the computation; float32 by default.
      quantization: "int8", "int4", "nf4" or "fp8": how the matrices of both towers are held, see
        `siglip_jax.quantized`; float by default. A directory that a quantized model was saved to says itself.
      attn_implementation: as in `SiglipModel`.
      mesh: lay the parameters out over it, and cut batches over its axes `data` and `fsdp`.
      revision: branch, tag or commit on the Hub.
      local_files_only: never ask the Hub.

    Raises:
      FileNotFoundError: if the checkpoint, or a file it needs, is not there.
      ValueError: if the checkpoint is not one of SigLIP or is damaged, or `quantization` is unknown or unlike that of a
        saved one.
    """
    path = resolve(name_or_path or EMBEDDED_MODEL, revision=revision, local_files_only=local_files_only)
    settings = read_config(path)
    flexible = settings.get("model_type") == Siglip2Config.model_type
    config = (Siglip2Config if flexible else SiglipConfig).from_dict(settings)
    processor = SiglipProcessor.from_pretrained(path if path.is_dir() else path.parent)
    dtype = jnp.dtype(dtype or jnp.float32)  # parameters too, or every step would convert them again
    model_class = Siglip2Model if flexible else SiglipModel
    options: Any = {"dtype": dtype, "attn_implementation": attn_implementation, "mesh": mesh}
    if quantization is not None or quantized.recognises(path):
        model, params = load_quantized(model_class, path, quantization, **options)
        return Siglip(model, params, processor, model.config)
    model, params = model_class.from_pretrained(path, param_dtype=dtype, **options)
    return Siglip(model, params, processor, config)


def probabilities(
    cosines: Float[np.ndarray, "images texts"], logit_scale: float, logit_bias: float
) -> Float[np.ndarray, "images texts"]:
    """Returns sigmoid(logit_scale * cosine + logit_bias) in float32, exact also where it is tiny.

    Source: "Sigmoid Loss for Language Image Pre-Training" (Zhai et al., 2023), section 3.2.
    """
    logits = cosines.astype(np.float32) * np.float32(logit_scale) + np.float32(logit_bias)
    small = np.exp(-np.abs(logits))  # in (0, 1]: never overflows
    return np.where(logits < 0, small, np.float32(1)) / (1 + small)


def rank(scores: Float[np.ndarray, " labels"], labels: tuple[str, ...], top_k: int | None = None) -> list[dict]:
    """Pairs labels with their scores, best first, equal scores in the order given."""
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [{"label": labels[i], "score": float(scores[i])} for i in order]


def check_labels(labels: object) -> tuple[str, ...]:
    """Returns the labels as a tuple.

    Raises:
      ValueError: if there are none, or one is blank or not a string.
    """
    names = as_texts(labels, "labels")
    if not names:
        raise ValueError("labels must name at least one label, found none; give labels such as 'a cat' 'a dog'")
    for i, name in enumerate(names):
        if not name.strip():
            raise ValueError(f"labels must not be blank, found {name!r} at position {i}; remove it")
    return names


def fill_template(template: str | None, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Puts each label in the place of `{}`; without a template the labels stay as they are.

    Raises:
      ValueError: if the template has no `{}`: all labels would get the same score.
    """
    if template is None:
        return labels
    if "{}" not in template:
        raise ValueError(f"template must have {{}} where the label goes, found {template!r}; write 'a photo of {{}}'")
    return tuple(template.replace("{}", label) for label in labels)


def check_count(name: str, value: int | None) -> None:
    """Refuses anything but None and a whole number of at least 1, with a `ValueError`."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} must be a whole number of at least 1, or None; got {value!r}")


def _batch_size(asked: int | None, defaults: dict[str, int]) -> int:
    check_count("batch_size", asked)
    return asked or defaults.get(jax.default_backend(), ACCELERATOR_BATCH)


def _embed(model: Model, method: str, params: dict[str, Any], *inputs: Array) -> Float[Array, "rows embed"]:
    embeds: Any = model.apply({"params": params}, *inputs, method=method)
    return normalize(embeds)
