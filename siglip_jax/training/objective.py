"""What a training step minimises, in two parts: embeddings of each example alone, and a loss over those of the batch.

Only the first part costs memory in proportion to the model, and it can be done a few examples at a time; the second
sees the whole batch. That is what makes exact gradient accumulation possible (see `step`).
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

from siglip_jax.losses.sigmoid import sigmoid_loss
from siglip_jax.losses.softmax import softmax_loss
from siglip_jax.losses.tiles import BlockSize, signed_loss
from siglip_jax.models.siglip import normalize
from siglip_jax.parallel.mesh import BATCH_AXES
from siglip_jax.training.lora import added
from siglip_jax.training.recipe import Lora

Batch = Mapping[str, Any]  # arrays by name, of jax or numpy
Metrics = dict[str, Array]
Prepare = Callable[[Key[Array, ""], UInt8[Array, "..."]], Float[Array, "..."]]  # images of a batch to model input


@dataclasses.dataclass(frozen=True)
class Objective:
    """Shared by both tasks.

    Attributes:
      module: `SiglipModel` for pairs, `SiglipForImageClassification` for labels; its parameters may have a tree of
        low-rank additions beside them, under "lora".
      prepare: from a key and the images of a batch, uint8, to what the module takes; augmentation belongs here.
      lora: how the additions act.
    """

    module: nn.Module
    prepare: Prepare
    lora: Lora = Lora()

    def apply(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Runs the module, with the low-rank additions if there are any."""
        params = dict(params)
        additions = params.pop("lora", None)
        with added(self.lora, additions) if additions else contextlib.nullcontext():
            return self.module.apply({"params": params}, *args, **kwargs)

    def embed(self, params: Mapping[str, Any], batch: Batch, key: Key[Array, ""]) -> Any:
        """Returns a tree of arrays, each with a row for an example."""
        raise NotImplementedError

    def loss(self, params: Mapping[str, Any], embeds: Any, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        """Returns the loss of the whole batch, and figures worth logging."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Pairs(Objective):
    """Image-text pairs, matched by row.

    Of the batch: `pixels` (n, h, w, 3) uint8, or `image_embeds` (n, E) made before; `input_ids` (m, T); where m is not
    n, or several match, `image_groups` (n,) and `text_groups` (m,).

    Attributes:
      contrast: "sigmoid" or "softmax".
      equal_texts_match: of the sigmoid loss: an image matches every text of the batch with the token ids of its own,
        unless the batch says by groups what matches.
      mesh: over which the batch is cut; None on one device.
      block_size: of the loss.
    """

    contrast: str = "sigmoid"
    equal_texts_match: bool = False
    mesh: Mesh | None = None
    block_size: BlockSize = "auto"

    def embed(self, params: Mapping[str, Any], batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Returns L2-normalised `images` (n, E) and `texts` (m, E)."""
        if "image_embeds" in batch:
            images = batch["image_embeds"].astype(jnp.float32)
        else:
            pixels = self.prepare(key, batch["pixels"])
            images = normalize(self.apply(params, pixels, method="get_image_features"))
        return {
            "images": images,
            "texts": normalize(self.apply(params, batch["input_ids"], method="get_text_features")),
        }

    def loss(self, params: Mapping[str, Any], embeds: Any, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        """Returns the sigmoid or softmax loss; of the sigmoid loss also the parts of matching and other pairs."""
        given = embeds["images"], embeds["texts"], params["logit_scale"], params["logit_bias"]
        over = {"block_size": self.block_size, "mesh": self.mesh, "axis": BATCH_AXES if self.mesh else "data"}
        scale, bias = params["logit_scale"][0], params["logit_bias"][0]
        metrics = {"temperature": jnp.exp(scale), "bias": bias}
        if self.contrast == "softmax":
            return softmax_loss(*given, **over), metrics
        groups = {name: batch[name] for name in ("image_groups", "text_groups") if name in batch}
        if self.equal_texts_match and not groups:
            groups = dict.fromkeys(("image_groups", "text_groups"), fingerprints(batch["input_ids"]))
        loss = sigmoid_loss(*given, **over, **groups)
        if not groups:
            cosines = jnp.sum(jax.lax.stop_gradient(embeds["images"] * embeds["texts"]), axis=1)
            positive = jnp.mean(signed_loss(-(jnp.exp(scale) * cosines + bias)))
            metrics |= {"loss_positive": positive, "loss_negative": loss - positive}
        return loss, metrics


def fingerprints(ids: Int32[Array, "rows positions"]) -> Int32[Array, " rows"]:
    """Returns a number for each row: the same for equal rows, and for others in one of four billion cases."""
    ids = jnp.asarray(ids).astype(jnp.uint32)
    found = jnp.zeros(len(ids), jnp.uint32)
    for position in range(ids.shape[1]):  # MurmurHash3's mixing of a word at a time
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
    """Images with labels: `pixels` (n, h, w, 3) uint8 and `label` (n,)."""

    def embed(self, params: Mapping[str, Any], batch: Batch, key: Key[Array, ""]) -> Array:
        """Returns the logits (n, classes)."""
        return self.apply(params, self.prepare(key, batch["pixels"])).logits

    def loss(self, params: Mapping[str, Any], embeds: Any, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        """Returns the mean cross-entropy, and the share of the examples whose label has the largest logit."""
        logits, label = embeds.astype(jnp.float32), batch["label"]
        own = jnp.take_along_axis(logits, label[:, None], axis=1)[:, 0]
        accuracy = jnp.mean((jnp.argmax(logits, axis=1) == label).astype(jnp.float32))
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - own), {"accuracy": accuracy}
