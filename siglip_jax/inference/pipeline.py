"""`pipeline("zero-shot-image-classification")`, the counterpart of the one in `transformers`.

Same arguments, same scores, same order. Differences, all deliberate: texts get the model's own length, so models of 16
positions work; a lone string is one label, not its characters; a template without `{}` is an error; `top_k` is
honoured; NumPy arrays are accepted; transparent images are composited on white however they arrive, where the
reference drops the alpha channel here.
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
    """Scores labels for images; call it. `batch_size` is the default of every call."""

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
        """Returns a list of `{"score", "label"}`, best first, for one image, and a list of such lists for several.

        Scores are sigmoid probabilities: each label is judged on its own and they need not sum to one.

        Args:
          image: one image (path, URL, bytes, PIL image, array) or an iterable of them.
          candidate_labels: the labels to score.
          hypothesis_template: the sentence whose `{}` a label takes.
          batch_size: images per step.
          top_k: how many labels to keep; all by default.
          timeout: seconds to wait for a URL; 10 by default.
          images: another name for `image`.

        Raises:
          ValueError: if images or labels are missing, or the template has no `{}`.
        """
        image = images if image is None else image
        if image is None:
            raise ValueError("image must be an image or an iterable of images, found none; pass image=")
        if candidate_labels is None:
            raise ValueError("candidate_labels must name at least one label, found none; pass candidate_labels=[...]")
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
    """Builds a pipeline from a model's name, directory or file, or around a loaded `Siglip`; see `load` for the rest.

    Raises:
      ValueError: if the task is not one of `TASKS`.
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
