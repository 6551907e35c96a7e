"""Image classification on the image tower of fixed resolution; `naflex` has the one of variable resolution.

Mirrors `SiglipForImageClassification`: the mean of the patch tokens after the final layer norm enters a linear layer;
the pooling head is not used, though its weights belong to the checkpoint. Differences: the kind of problem is not
written back into the configuration, `num_labels=0` returns the mean itself, and where `config.json` says
`"classifier_pool": "map"` (as read from timm) the linear layer is on the embedding of the pooling head.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from siglip_jax.configs.config_json import CLASSIFIER_POOL
from siglip_jax.configs.configuration import SiglipConfig
from siglip_jax.losses.cross_entropy import cross_entropies
from siglip_jax.models.initializers import initializers
from siglip_jax.models.outputs import ImageClassifierOutput, TowerOutput
from siglip_jax.models.pretrained import PretrainedModule
from siglip_jax.models.products import Dense
from siglip_jax.models.vision import ImageTransformer, VisionTransformer, check_pixels

IGNORED_LABEL = -100  # torch's convention: rows with this label take no part in the loss


def classification_loss(
    logits: Float[Array, "batch labels"], labels: Shaped[Array, "..."], problem_type: str | None
) -> Float[Array, ""]:
    """Returns the loss that the reference chooses by `problem_type`, or by the number of labels and their dtype.

    One label: mean squared error. Integer `labels` (batch,): cross-entropy. Float `labels` (batch, labels): binary
    cross-entropy, averaged over all entries. An integer outside of the classes, other than -100, is an error; under
    `jax.jit`, where its value is not known, the loss is NaN.

    Raises:
      ValueError: if the model has no labels, the shape of `labels` does not fit the problem, or a label is no class.
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
        losses = cross_entropies(logits, jnp.where(kept, labels, 0))
        return jnp.sum(jnp.where(kept, losses, 0.0)) / jnp.sum(kept, dtype=jnp.float32)
    labels = labels.astype(jnp.float32)
    if problem_type == "regression":
        return jnp.mean((logits - labels) ** 2)
    return jnp.mean(jax.nn.softplus(logits) - labels * logits)


class ImageClassifier(PretrainedModule):
    """A linear layer on the mean of an image tower's patches; subclasses add `__call__`."""

    config: SiglipConfig

    tower_class: ClassVar[type[ImageTransformer]]

    def setup(self) -> None:
        """Builds the image tower, and the linear layer unless `num_labels` is 0."""
        c = self.config
        self.vision_model = self.tower_class(c.vision_config, self.options)
        if c.num_labels:
            init = initializers(self.init_scheme, c.initializer_factor).classifier
            self.classifier = Dense(c.num_labels, kernel_init=init, **self.options.types)

    def classify(
        self, out: TowerOutput, mask: ArrayLike | None = None, labels: ArrayLike | None = None
    ) -> ImageClassifierOutput:
        """Returns the logits of images from the output of the tower.

        Args:
          out: output of the image tower.
          mask: (images, patches), 1 for patches that take part in the mean and 0 for padding; None: all patches.
          labels: (images,) integers, of which -100 takes no part in the loss, or (images, labels) floats for several
            labels per image; None: no loss. Another integer that is no class is an error, and NaN under `jax.jit`.

        Returns:
          Logits (images, labels), and the loss if `labels` are given.

        Raises:
          ValueError: if `labels` are given and the model has none, their shape does not fit the problem, or one is no
            class.
        """
        if self.config.extra.get(CLASSIFIER_POOL) == "map" and out.embedding is not None:
            mean = out.embedding
        elif mask is None:
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
                raise ValueError("num_labels must be at least 1 where labels are given, got 0; set it in the config")
            loss = classification_loss(logits, jnp.asarray(labels), self.config.problem_type)
        return ImageClassifierOutput(loss, logits, out.hidden_states, out.attentions)


class SiglipForImageClassification(ImageClassifier):
    """A linear classifier on the mean of an image's patches, for images of fixed resolution.

    Source: `SiglipForImageClassification` of `transformers`.

    Attributes:
      config: sizes and number of labels, a `SiglipConfig`; its text tower is not used.
      dtype: compute dtype; layer norms, softmax and the mean over patches are computed in float32 whatever it is.
      param_dtype: dtype of freshly initialised parameters.
      attn_implementation: "auto", "xla", "eager", "cudnn" (NVIDIA GPUs) or "pallas" (TPUs). Only "eager" returns
        attention weights; "auto" is the fused kernel of the device where that runs and pays, else "xla".
      remat: what the backward pass recomputes: None (nothing), "full" (everything), "dots" (everything but matrix
        products), "dots_with_no_batch_dims" (everything but matrix products without batch dimensions) or
        "attention_and_mlp_input" (everything but what attention computes and what the MLP takes).
      scan_layers: whether the layers are stacked on a leading axis and run by `lax.scan`, so that compile
        time does not grow with depth.
      init_scheme: initialisers of fresh parameters, "paper" (those of big_vision; the last layer starts at zero) or
        "reference" (those of `transformers`).
      mesh: mesh over whose axes `data` and `fsdp` the batch is sharded; None: the mesh of `jax.set_mesh`, if any.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import siglip_jax
      >>> config = siglip_jax.SiglipConfig(vision_config={"num_hidden_layers": 2}, num_labels=5)
      >>> model = siglip_jax.SiglipForImageClassification(config)
      >>> images = jnp.zeros((3, 224, 224, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(lambda v: model.apply(v, images).logits, variables).shape
      (3, 5)
    """

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
        """Classifies images.

        Args:
          pixel_values: (images, height, width, channels) floating point, in the range [-1, 1] that the processor makes.
          labels: (images,) integers, of which -100 takes no part in the loss, or (images, labels) floats for several
            labels per image; None: no loss. Another integer that is no class is an error, and NaN under `jax.jit`.
          interpolate_pos_encoding: whether to accept images of another size, for which the position table is resized as
            in the reference.
          output_hidden_states: whether to return the embeddings and the output of each layer.
          output_attentions: whether to return the attention weights; needs `attn_implementation="eager"`.
          deterministic: False switches attention dropout on and needs the random stream "dropout".

        Returns:
          Logits (images, labels), and the loss if `labels` are given.

        Raises:
          ValueError: if `pixel_values` or `labels` have the wrong shape or dtype, or a label is no class.
        """
        pixel_values = check_pixels(pixel_values, self.config.vision_config, interpolate_pos_encoding)
        out = self.vision_model(
            pixel_values, interpolate_pos_encoding, output_hidden_states, output_attentions, deterministic
        )
        return self.classify(out, labels=labels)
