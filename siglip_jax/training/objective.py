"""Objectives of training, in two parts: embeddings of each example alone, and a loss over those of the whole batch.

Only the first part takes memory in proportion to the model, and it can be computed a few examples at a time; the second
sees the whole batch. This split makes exact gradient accumulation possible (see `step`).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, Key, UInt8

from siglip_jax.losses.cross_entropy import cross_entropies
from siglip_jax.losses.sigmoid import sigmoid_loss
from siglip_jax.losses.softmax import softmax_loss
from siglip_jax.losses.tiles import BlockSize, signed_loss
from siglip_jax.models.elementwise import normalize
from siglip_jax.parallel.mesh import BATCH_AXES
from siglip_jax.training.lora import added
from siglip_jax.training.naflex import image_inputs, padding_of
from siglip_jax.training.recipe import Lora

Batch = Mapping[str, Any]  # JAX or NumPy arrays by name
Metrics = dict[str, Array]
Prepare = Callable[
    [Key[Array, ""], UInt8[Array, "..."]], Float[Array, "..."]
]  # maps the images of a batch to model input


@dataclasses.dataclass(frozen=True)
class Objective:
    """Base class of what a training step minimises: `embed` for each example alone, then `loss` over the whole batch.

    A subclass implements both; `embed` is called for each micro-batch, `loss` once for a step.

    Attributes:
      module: `SiglipModel` for pairs, `SiglipForImageClassification` for labels, or those of variable resolution.
      prepare: function from (key, images (n, h, w, 3) uint8) to the pixels that the module takes; random augmentation
        belongs here.
      lora: scale of the low-rank additions, which are under "lora" in the parameters.

    Example:
      >>> import dataclasses, jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> @dataclasses.dataclass(frozen=True)
      ... class Regression(Objective):
      ...     def embed(self, params, batch, key):
      ...         return self.apply(params, batch["x"])
      ...     def loss(self, params, embeds, batch):
      ...         return jnp.mean((embeds - batch["y"]) ** 2), {}
      >>> batch, key = {"x": jnp.ones((2, 3)), "y": jnp.zeros((2, 1))}, jax.random.key(0)
      >>> objective = Regression(nn.Dense(1), prepare=lambda key, pixels: pixels)
      >>> params = {"kernel": jnp.ones((3, 1)), "bias": jnp.zeros(1)}
      >>> float(objective.loss(params, objective.embed(params, batch, key), batch)[0])
      9.0
    """

    module: nn.Module
    prepare: Prepare
    lora: Lora = Lora()

    def apply(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Runs the module, with the low-rank additions if the parameters have any.

        Args:
          params: parameters of the module, a nested dict; low-rank additions under "lora".
          *args: arguments of the module.
          **kwargs: keyword arguments of `Module.apply`, as in `method="get_text_features"`.

        Returns:
          The output of the module.
        """
        params = dict(params)
        additions = params.pop("lora", None)
        with added(self.lora, additions) if additions else contextlib.nullcontext():
            return self.module.apply({"params": params}, *args, **kwargs)

    def embed(self, params: Mapping[str, Any], batch: Batch, key: Key[Array, ""]) -> Any:
        """Returns the embeddings of a batch or micro-batch; each row depends on its example alone.

        Args:
          params: parameters of the module, a nested dict.
          batch: arrays by name, each with a row for an example.
          key: random key for augmentation.

        Returns:
          A tree of arrays, each with a row for an example.
        """
        raise NotImplementedError

    def loss(self, params: Mapping[str, Any], embeds: Any, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        """Returns the loss of the whole batch.

        Args:
          params: parameters of the module, a nested dict.
          embeds: embeddings of the whole batch, as from `embed`.
          batch: arrays of the whole batch by name.

        Returns:
          The loss, a float32 scalar, and scalar metrics to log by name.
        """
        raise NotImplementedError

    def follow(self, frozen: Mapping[str, Any], trained: Mapping[str, Any], metrics: Metrics) -> tuple[Any, Metrics]:
        """Returns the frozen parameters of the next step, some of which may follow the trained ones.

        Args:
          frozen: parameters that no gradient changes, a nested dict.
          trained: trained parameters after the step, a nested dict.
          metrics: metrics of the step, as from `loss`.

        Returns:
          The frozen parameters, here the same, and the metrics to log.
        """
        return frozen, metrics


@dataclasses.dataclass(frozen=True)
class Pairs(Objective):
    """Contrastive objective of image-text pairs, matched by row or by groups.

    A batch has `pixels` (n, h, w, 3) uint8, or patches (n, L, p * p * 3) uint8 with `spatial_shapes` (n, 2) int32, or
    precomputed `image_embeds` (n, E) float32; `input_ids` (m, T) int32; and optionally `image_groups` (n,) int32 and
    `text_groups` (m,) int32: an image and a text of the same group are a
    positive pair. Without groups n is m, and images and texts of the same row are the positive pairs; so are those of
    two rows of the same image, where the batch has `image_ids` (n,) int32, equal for rows of the same image. The
    softmax loss, which has one positive pair for each row, leaves such pairs of two rows out of its denominators.

    Attributes:
      module: `SiglipModel`.
      prepare: function from (key, images (n, h, w, 3) uint8) to the pixels that the module takes.
      lora: scale of the low-rank additions, which are under "lora" in the parameters.
      contrast: loss, "sigmoid" or "softmax".
      equal_texts_match: whether an image matches every text whose token ids equal those of its own; sigmoid loss only,
        and only for batches without groups.
      mesh: mesh over whose `data` and `fsdp` axes the batch is sharded; None: one device.
      block_size: rows and columns of the largest tile of logits that the loss holds; None: the whole matrix; "auto":
        chosen for the device.

    Example:
      >>> import jax, jax.numpy as jnp, siglip_jax
      >>> from siglip_jax.training import Pairs
      >>> siglip = siglip_jax.load()
      >>> objective = Pairs(siglip.model, prepare=lambda key, pixels: pixels / 127.5 - 1)
      >>> (input_ids,) = siglip.tokens(["a horse", "a lemon"])
      >>> image_embeds = siglip.encode_text(["one horse", "one lemon"])
      >>> batch = {"image_embeds": jnp.asarray(image_embeds), "input_ids": input_ids}
      >>> params = jax.tree.map(lambda x: x.astype("float32"), siglip.params)
      >>> embeds = objective.embed(params, batch, jax.random.key(0))
      >>> loss, metrics = objective.loss(params, embeds, batch)
      >>> sorted(metrics)
      ['bias', 'loss_negative', 'loss_positive', 'temperature']
    """

    contrast: str = "sigmoid"
    equal_texts_match: bool = False
    mesh: Mesh | None = None
    block_size: BlockSize = "auto"

    def embed(self, params: Mapping[str, Any], batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Returns the embeddings of the images and texts of a batch or micro-batch.

        Args:
          params: parameters of the module, a nested dict; low-rank additions under "lora".
          batch: `pixels` (n, h, w, 3) uint8 or `image_embeds` (n, E) float32, and `input_ids` (m, T) int32.
          key: random key for augmentation.

        Returns:
          L2-normalised `images` (n, E) and `texts` (m, E).
        """
        if "image_embeds" in batch:
            images = batch["image_embeds"].astype(jnp.float32)
        else:
            inputs = image_inputs(self.prepare(key, batch["pixels"]), batch)
            images = normalize(self.apply(params, *inputs, method="get_image_features"))
        return {
            "images": images,
            "texts": normalize(self.apply(params, batch["input_ids"], method="get_text_features")),
        }

    def loss(self, params: Mapping[str, Any], embeds: Any, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        """Returns the sigmoid or softmax loss of the whole batch.

        Args:
          params: parameters of the module; `logit_scale` and `logit_bias` are used.
          embeds: L2-normalised `images` (n, E) and `texts` (m, E), as from `embed`.
          batch: arrays of the whole batch; groups and `input_ids` are used.

        Returns:
          The loss, a float32 scalar, and the metrics `temperature`, `bias`, with `image_ids` `repeated_images` (rows
          whose image is that of another row before), with `spatial_shapes` `padding` (the share of padding among the
          patches) and `patches` (the length), and, for the sigmoid loss without groups and equal texts,
          `loss_positive` and `loss_negative`: the terms of each image and its own text, and of all other pairs.
        """
        given = embeds["images"], embeds["texts"], params["logit_scale"], params["logit_bias"]
        over = {"block_size": self.block_size, "mesh": self.mesh, "axis": BATCH_AXES if self.mesh else "data"}
        scale, bias = params["logit_scale"][0], params["logit_bias"][0]
        metrics = {"temperature": jnp.exp(scale), "bias": bias} | padding_of(batch)
        images = None
        if "image_ids" in batch:
            images = jnp.asarray(batch["image_ids"])
            ordered = jnp.sort(images)
            metrics["repeated_images"] = jnp.sum(ordered[1:] == ordered[:-1]).astype(jnp.float32)
        if self.contrast == "softmax":
            return softmax_loss(*given, **over, image_groups=images), metrics
        groups = {name: batch[name] for name in ("image_groups", "text_groups") if name in batch}
        by_row = not groups and not self.equal_texts_match
        if not groups:
            texts = fingerprints(batch["input_ids"]) if self.equal_texts_match else None
            kinds = [ids for ids in (images, texts) if ids is not None]
            if kinds:
                both = kinds[0] if len(kinds) == 1 else jnp.stack(kinds, axis=1)
                groups = dict.fromkeys(("image_groups", "text_groups"), both)
        loss = sigmoid_loss(*given, **over, **groups)
        if by_row:
            cosines = jnp.sum(jax.lax.stop_gradient(embeds["images"] * embeds["texts"]), axis=1)
            positive = jnp.mean(signed_loss(-(jnp.exp(scale) * cosines + bias)))
            metrics |= {"loss_positive": positive, "loss_negative": loss - positive}
        return loss, metrics


def fingerprints(ids: Int32[Array, "rows positions"]) -> Int32[Array, " rows"]:
    """Returns a hash of each row, equal for equal rows and for one in four billion pairs of unequal ones.

    Args:
      ids: token ids, (rows, positions) int32.

    Returns:
      Hashes, (rows,) int32.
    """
    ids = jnp.asarray(ids).astype(jnp.uint32)
    found = jnp.zeros(len(ids), jnp.uint32)
    for position in range(ids.shape[1]):  # mixes in one word as MurmurHash3 does
        word = ids[:, position] * jnp.uint32(0xCC9E2D51)
        found = found ^ (_rotated(word, 15) * jnp.uint32(0x1B873593))
        found = _rotated(found, 13) * jnp.uint32(5) + jnp.uint32(0xE6546B64)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        found = (found ^ (found >> jnp.uint32(shift))) * jnp.uint32(factor)
    return jax.lax.bitcast_convert_type(found ^ (found >> jnp.uint32(16)), jnp.int32)


def _rotated(x: Array, by: int) -> Array:
    return (x << jnp.uint32(by)) | (x >> jnp.uint32(32 - by))


@dataclasses.dataclass(frozen=True)
class Labels(Objective):
    """Objective of a classifier: softmax cross-entropy of images with labels.

    A batch has `pixels` (n, h, w, 3) uint8, or patches (n, L, p * p * 3) uint8 with `spatial_shapes` (n, 2) int32, and
    `label` (n,) int32.

    Attributes:
      module: `SiglipForImageClassification`.
      prepare: function from (key, images (n, h, w, 3) uint8) to the pixels that the module takes.
      lora: scale of the low-rank additions, which are under "lora" in the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from siglip_jax.training import Labels
      >>> objective = Labels(nn.Dense(2), prepare=lambda key, pixels: pixels)
      >>> logits, batch = jnp.array([[2.0, 0.0], [0.0, 2.0]]), {"label": jnp.array([0, 0])}
      >>> loss, metrics = objective.loss({}, logits, batch)
      >>> round(float(loss), 3), float(metrics["accuracy"])
      (1.127, 0.5)
    """

    def embed(self, params: Mapping[str, Any], batch: Batch, key: Key[Array, ""]) -> Array:
        """Returns the logits of a batch or micro-batch.

        Args:
          params: parameters of the module, a nested dict; low-rank additions under "lora".
          batch: `pixels`, images (n, h, w, 3) uint8.
          key: random key for augmentation.

        Returns:
          Logits, (n, classes).
        """
        return self.apply(params, *image_inputs(self.prepare(key, batch["pixels"]), batch)).logits

    def loss(self, params: Mapping[str, Any], embeds: Any, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        """Returns the mean cross-entropy of the whole batch.

        Args:
          params: not used.
          embeds: logits, (n, classes), as from `embed`.
          batch: `label`, class index of each image, (n,) int32.

        Returns:
          The loss, a float32 scalar, and `accuracy`, the share of images whose label has the largest logit. A label
          outside of the classes makes the loss NaN under `jax.jit`.

        Raises:
          ValueError: if a label is outside of the classes and its value is known, as outside of `jax.jit`.
        """
        logits, label = embeds.astype(jnp.float32), jnp.asarray(batch["label"])
        accuracy = jnp.mean((jnp.argmax(logits, axis=1) == label).astype(jnp.float32))
        return jnp.mean(cross_entropies(logits, label)), {"accuracy": accuracy} | padding_of(batch)
