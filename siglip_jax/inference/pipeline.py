"""`pipeline("zero-shot-image-classification")` and `pipeline("image-classification")`, as in `transformers`.

Arguments, scores and order are the same. Differences, all deliberate: texts are padded to the model's own length, so
models of 16 positions work; a single string is one label, not its characters; a template without `{}` is an error;
`top_k` is honoured; NumPy arrays are accepted; transparent images from every source are composited over white, where
the reference drops the alpha channel; a model without a classifier is an error for "image-classification", where the
reference adds a random one.
"""

import dataclasses
import os
from typing import Any

from jax.sharding import Mesh

from siglip_jax._checks import check_choice, check_count
from siglip_jax.checkpoints.keymap import CLASSIFIER
from siglip_jax.inference.engine import Images, Siglip, Texts
from siglip_jax.inference.labels import FUNCTIONS, function_of, label_scores, own_labels, rank
from siglip_jax.inference.load import load
from siglip_jax.inference.towers import parts_of
from siglip_jax.processing.images.inputs import is_one_image

ZERO_SHOT, OWN_LABELS = "zero-shot-image-classification", "image-classification"
TASKS = (OWN_LABELS, ZERO_SHOT)
TOP_K = 5  # the reference's number of labels of a classifier


@dataclasses.dataclass(frozen=True)
class ZeroShotImageClassificationPipeline:
    """A callable that scores labels for images, with the interface of the one in `transformers`.

    Source: `ZeroShotImageClassificationPipeline` of `transformers`.

    Attributes:
      siglip: engine that scores the labels.
      batch_size: number of images per step of calls that pass none; None: `siglip.choices.image_batch`.

    Example:
      >>> import siglip_jax
      >>> classifier = ZeroShotImageClassificationPipeline(siglip_jax.load())
      >>> image = siglip_jax.assets.EXAMPLES / "horse.png"
      >>> [entry["label"] for entry in classifier(image, candidate_labels=["lemon", "horse"])]
      ['horse', 'lemon']
    """

    siglip: Siglip
    batch_size: int | None = None

    def __call__(
        self,
        image: Images | None = None,
        candidate_labels: Texts | None = None,
        *,
        hypothesis_template: str = "This is a photo of {}.",
        batch_size: int | None = None,
        top_k: int | None = None,
        timeout: float | None = None,
        images: Images | None = None,
    ) -> list[Any]:
        """Ranks the candidate labels for one image or several.

        Scores are sigmoid probabilities: each label is scored on its own, so they need not sum to one.

        Args:
          image: one image, or an iterable of N images, each a path, URL, bytes, PIL image or array (height, width,
            channels).
          candidate_labels: one string or an iterable of strings, the labels to score.
          hypothesis_template: sentence in which each label replaces `{}`.
          batch_size: number of images per step; None: the pipeline's `batch_size`.
          top_k: number of labels to keep per image; None: all.
          timeout: seconds to wait for the download of an image given as a URL; None: 10.
          images: another name for `image`, used if that is None.

        Returns:
          For one image, a list of `{"label": str, "score": float}`, highest score first; for an iterable of images, a
          list of such lists.

        Raises:
          FileNotFoundError: if an image does not exist.
          ValueError: if an image cannot be read, an embedding is not finite, images or labels are missing, a label is
            blank, the template has no `{}`, or `top_k` or `batch_size` is below 1.
        """
        image = images if image is None else image
        if image is None:
            raise ValueError("image must be an image or an iterable of images, got None; pass image=")
        if candidate_labels is None:
            raise ValueError("candidate_labels must name at least one label, got None; pass candidate_labels=[...]")
        return self.siglip.classify(
            image,
            candidate_labels,
            hypothesis_template=hypothesis_template,
            top_k=top_k,
            batch_size=batch_size or self.batch_size,
            timeout=10.0 if timeout is None else timeout,
        )


@dataclasses.dataclass(frozen=True)
class ImageClassificationPipeline:
    """A callable that ranks a classifier's own labels for images, with the interface of the one in `transformers`.

    Source: `ImageClassificationPipeline` of `transformers`.

    Attributes:
      siglip: engine of an image classifier.
      batch_size: number of images per step of calls that pass none; None: `siglip.choices.image_batch`.

    No example: no classifier ships with the package.
    """

    siglip: Siglip
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """Checks the model.

        Raises:
          ValueError: if it is not an image classifier.
        """
        if CLASSIFIER not in parts_of(self.siglip.model):
            raise ValueError(
                f"model must be an image classifier for {OWN_LABELS!r}, got a {type(self.siglip.model).__name__}; use"
                f" {ZERO_SHOT!r}, or train a classifier"
            )

    def __call__(
        self,
        inputs: Images | None = None,
        *,
        function_to_apply: str | None = None,
        top_k: int | None = None,
        batch_size: int | None = None,
        timeout: float | None = None,
        images: Images | None = None,
    ) -> list[Any]:
        """Ranks the labels of the classifier for one image or several.

        Args:
          inputs: one image, or an iterable of N images, each a path, URL, bytes, PIL image or array (height, width,
            channels).
          function_to_apply: function from logits to scores, "sigmoid", "softmax" or "none"; None: "none" for a
            `problem_type` of "regression", "sigmoid" for "multi_label_classification" or a single label, and "softmax"
            otherwise.
          top_k: number of labels to keep per image; None: 5.
          batch_size: number of images per step; None: the pipeline's `batch_size`.
          timeout: seconds to wait for the download of an image given as a URL; None: 10.
          images: another name for `inputs`, used if that is None.

        Returns:
          For one image, a list of `{"label": str, "score": float}`, highest score first; for an iterable of images, a
          list of such lists.

        Raises:
          FileNotFoundError: if an image does not exist.
          ValueError: if an image cannot be read, its logits are not finite, images are missing, the function is
            unknown, or `top_k` or `batch_size` is below 1.
        """
        inputs = images if inputs is None else inputs
        if inputs is None:
            raise ValueError("inputs must be an image or an iterable of images, got None; pass images")
        check_count("top_k", top_k)
        config = self.siglip.config
        function = function_to_apply or function_of(config.num_labels, config.problem_type)
        names = own_labels(config)
        check_choice("function_to_apply", function.lower(), FUNCTIONS)  # before anything is computed
        one = is_one_image(inputs)
        wait = 10.0 if timeout is None else timeout
        logits = self.siglip.label_logits(inputs, batch_size=batch_size or self.batch_size, timeout=wait)
        ranked = [rank(row, names, top_k or TOP_K) for row in label_scores(logits, function)]
        return ranked[0] if one else ranked


def pipeline(
    task: str = "zero-shot-image-classification",
    model: str | os.PathLike[str] | Siglip | None = None,
    *,
    batch_size: int | None = None,
    dtype: Any = None,
    quantization: str | None = None,
    attn_implementation: str = "auto",
    mesh: Mesh | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
    variant: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
) -> Any:
    """Returns a pipeline around a model, as `transformers.pipeline` does.

    All arguments from `dtype` on apply to loading only; they are ignored for a `Siglip`.

    Source: `pipeline` of `transformers`.

    Args:
      task: "zero-shot-image-classification", or "image-classification" for the own labels of a classifier.
      model: local directory or weights file, a Hub name, or a loaded `Siglip`; None: the bundled model.
      batch_size: number of images per step; None: `choices.image_batch` of the model.
      dtype: dtype of the parameters and of the computation, such as `jnp.bfloat16` or "bfloat16"; None: float32.
      quantization: number format of the kernels of both towers, "int8", "int4", "nf4" or "fp8"; None: floats, or the
        scheme of the checkpoint if that is quantized already.
      attn_implementation: "auto", "xla", "eager", "cudnn" (NVIDIA GPUs) or "pallas" (TPUs); "auto" is the fused
        kernel of the device where that runs and pays, else "xla".
      mesh: mesh over which the parameters are sharded, and over whose axes `data` and `fsdp` batches are; None: the
        default device.
      revision: branch, tag or commit of a Hub repository; None: its `main`.
      local_files_only: whether to use only files that are already on this machine.
      subfolder: folder of the directory or repository that holds the checkpoint; None: its top.
      variant: variant of the weights, such as "fp16" for `model.fp16.safetensors`; None: `model.safetensors`.
      cache_dir: folder of the Hub's cache; None: that of `huggingface_hub`.
      token: token for the Hub, False for none; None: that of `HF_TOKEN` or of the login.

    Returns:
      A `ZeroShotImageClassificationPipeline`, to be called with images and labels, or an `ImageClassificationPipeline`,
      to be called with images.

    Raises:
      FileNotFoundError: if the checkpoint, or a file it needs, does not exist.
      ValueError: if the task is unknown, the checkpoint cannot be loaded with these options, or it is not a classifier
        for "image-classification".

    Example:
      >>> import siglip_jax
      >>> classifier = siglip_jax.pipeline("zero-shot-image-classification")
      >>> image = siglip_jax.assets.EXAMPLES / "horse.png"
      >>> ranked = classifier(image, candidate_labels=["lemon", "horse"], hypothesis_template="{}")
      >>> ranked[0]["label"], round(ranked[0]["score"], 2)
      ('horse', 0.97)
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(map(repr, TASKS))}, got {task!r}")
    if not isinstance(model, Siglip):
        model = load(
            model,
            dtype=dtype,
            quantization=quantization,
            attn_implementation=attn_implementation,
            mesh=mesh,
            revision=revision,
            local_files_only=local_files_only,
            subfolder=subfolder,
            variant=variant,
            cache_dir=cache_dir,
            token=token,
        )
    if task == OWN_LABELS:
        return ImageClassificationPipeline(model, batch_size)
    return ZeroShotImageClassificationPipeline(model, batch_size)
