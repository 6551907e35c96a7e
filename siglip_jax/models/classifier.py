"""Image classification on the image tower, of fixed resolution here; `naflex` has that of variable resolution.

Mirrors `SiglipForImageClassification`: the mean of the patch tokens after the final normalisation goes through a linear
layer; the pooling head takes no part, though its weights belong to the checkpoint. Differences: the kind of problem is
not written back into the configuration, and `num_labels=0` gives the mean itself.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from siglip_jax.configs.configuration import SiglipConfig
from siglip_jax.models.initializers import initializers
from siglip_jax.models.outputs import ImageClassifierOutput, TowerOutput
from siglip_jax.models.pretrained import PretrainedModule
from siglip_jax.models.products import Dense
from siglip_jax.models.vision import ImageTransformer, VisionTransformer, check_pixels

IGNORED_LABEL = -100  # torch's convention: such rows take no part in the loss


def classification_loss(
    logits: Float[Array, "batch labels"], labels: Shaped[Array, "..."], problem_type: str | None
) -> Float[Array, ""]:
    """The loss the reference picks: by `problem_type`, or by the number of labels and the type of `labels`.

    One label: mean squared error. Integer `labels` (batch,): cross-entropy. Float `labels` (batch, labels): binary
    cross-entropy, mean over all entries.

    Raises:
      ValueError: if there are no labels in the model, or their shape does not fit the problem.
    """
    count = logits.shape[1]
    if problem_type is None:
        integers = jnp.issubdtype(labels.dtype, jnp.integer)
        kinds = ("single_label_classification", "multi_label_classification")
        problem_type = "regression" if count == 1 else kinds[0] if integers else kinds[1]
    expected = logits.shape[:1] if problem_type == "single_label_classification" else logits.shape
    if problem_type == "regression" and count == 1 and labels.ndim == 1:
        labels = labels[:, None]
    if labels.shape != expected or not count:
        raise ValueError(f"labels for {problem_type} must have shape {expected}, got {labels.shape}")
    logits = logits.astype(jnp.float32)
    if problem_type == "single_label_classification":
        kept = labels != IGNORED_LABEL
        rows = jnp.take_along_axis(logits, jnp.where(kept, labels, 0)[:, None], axis=1)[:, 0]
        return jnp.sum(jnp.where(kept, jax.nn.logsumexp(logits, axis=1) - rows, 0.0)) / jnp.sum(kept, dtype=jnp.float32)
    labels = labels.astype(jnp.float32)
    if problem_type == "regression":
        return jnp.mean((logits - labels) ** 2)
    return jnp.mean(jax.nn.softplus(logits) - labels * logits)


class ImageClassifier(PretrainedModule):
    """A linear layer on the mean of an image tower's patches; each family adds its own `__call__`."""

    config: SiglipConfig

    tower_class: ClassVar[type[ImageTransformer]]

    def setup(self) -> None:
        c = self.config
        self.vision_model = self.tower_class(c.vision_config, self.options)
        if c.num_labels:
            init = initializers(self.init_scheme, c.initializer_factor).classifier
            self.classifier = Dense(c.num_labels, kernel_init=init, **self.options.types)

    def classify(
        self, out: TowerOutput, mask: ArrayLike | None = None, labels: ArrayLike | None = None
    ) -> ImageClassifierOutput:
        """Classifies what the tower made of the images; with `labels` also the loss of `classification_loss`.

        Args:
          mask: (batch, patches), 1 for what takes part in the mean.
        """
        if mask is None:
            mean = jnp.mean(out.last_hidden_state, axis=1, dtype=jnp.float32)
        else:
            weights = jnp.asarray(mask).astype(jnp.float32)[..., None]
            total = jnp.sum(out.last_hidden_state.astype(jnp.float32) * weights, axis=1)
            mean = total / jnp.sum(weights, axis=1)
        logits = mean.astype(self.dtype)
        if self.config.num_labels:
            logits = self.classifier(logits)
        loss = None
        if labels is not None:
            if not self.config.num_labels:
                raise ValueError("labels were given, but the model has none (num_labels=0)")
            loss = classification_loss(logits, jnp.asarray(labels), self.config.problem_type)
        return ImageClassifierOutput(loss, logits, out.hidden_states, out.attentions)


class SiglipForImageClassification(ImageClassifier):
    """A linear classifier on the image tower; see `PretrainedModule` for the fields."""

    tower_class = VisionTransformer

    def __call__(
        self,
        pixel_values: ArrayLike,
        labels: ArrayLike | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        deterministic: bool = True,
    ) -> ImageClassifierOutput:
        """Classifies images (batch, height, width, channel); with `labels` also the loss of `classification_loss`."""
        pixel_values = check_pixels(pixel_values, self.config.vision_config, interpolate_pos_encoding)
        out = self.vision_model(
            pixel_values, interpolate_pos_encoding, output_hidden_states, output_attentions, deterministic
        )
        return self.classify(out, labels=labels)
