"""`pipeline("zero-shot-image-classification")`, the counterpart of the one in `transformers`.

Arguments, scores and order are the same. Differences, all deliberate: texts are padded to the model's own length, so
models of 16 positions work; a single string is one label, not its characters; a template without `{}` is an error;
`top_k` is honoured; NumPy arrays are accepted; transparent images from every source are composited over white, where
the reference drops the alpha channel.
"""

import dataclasses
import os
from typing import Any

from jax.sharding import Mesh

from siglip_jax.inference.engine import Images, Siglip, Texts
from siglip_jax.inference.load import load

TASKS = ("zero-shot-image-classification",)


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
) -> ZeroShotImageClassificationPipeline:
    """Returns a pipeline around a model, as `transformers.pipeline` does.

    All arguments from `dtype` on apply to loading only; they are ignored for a `Siglip`.

    Source: `pipeline` of `transformers`.

    Args:
      task: "zero-shot-image-classification", the only task.
      model: local directory or weights file, a Hub name, or a loaded `Siglip`; None: the bundled model.
      batch_size: number of images per step; None: `choices.image_batch` of the model.
      dtype: dtype of the parameters and of the computation, such as `jnp.bfloat16` or "bfloat16"; None: float32.
      quantization: number format of the kernels of both towers, "int8", "int4", "nf4" or "fp8"; None: floats, or the
        scheme of the checkpoint if that is quantized already.
      attn_implementation: "auto", "xla", "eager" or "cudnn". "cudnn" needs an NVIDIA GPU; "auto" chooses between "xla"
        and "eager".
      mesh: mesh over which the parameters are sharded, and over whose axes `data` and `fsdp` batches are; None: the
        default device.
      revision: branch, tag or commit of a Hub repository; None: its `main`.
      local_files_only: whether to use only files that are already on this machine.

    Returns:
      A `ZeroShotImageClassificationPipeline`; call it with images and labels.

    Raises:
      FileNotFoundError: if the checkpoint, or a file it needs, does not exist.
      ValueError: if the task is unknown, or the checkpoint cannot be loaded with these options.

    Example:
      >>> import siglip_jax
      >>> classifier = siglip_jax.pipeline("zero-shot-image-classification")
      >>> image = siglip_jax.assets.EXAMPLES / "horse.png"
      >>> ranked = classifier(image, candidate_labels=["lemon", "horse"], hypothesis_template="{}")
      >>> ranked[0]["label"], round(ranked[0]["score"], 2)
      ('horse', 0.38)
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
        )
    return ZeroShotImageClassificationPipeline(model, batch_size)
