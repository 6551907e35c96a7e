"""The objective of SigLIP 2: pairs, captions, and the outputs of a teacher that is a moving average of the image tower.

The parameters have further groups beside those of the model: `decoder`, `distillation_head`, `masked_head` and
`mask_token` are trained, and `teacher` is changed by each step.

Source: Tschannen et al. 2025, arXiv 2502.14786, sections 2.2 and 2.3.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key

from siglip_jax.data.regions import TASKS
from siglip_jax.losses.captioning import caption_weights, captioning_loss
from siglip_jax.losses.distillation import distillation_losses, update_center
from siglip_jax.losses.masked_prediction import masked_prediction_losses, random_patch_mask
from siglip_jax.models.decoder import CaptionDecoder
from siglip_jax.models.elementwise import normalize
from siglip_jax.models.outputs import TowerOutput
from siglip_jax.models.patches import Patches
from siglip_jax.models.prototypes import PrototypeHead
from siglip_jax.parallel.mesh import BATCH_AXES
from siglip_jax.parallel.sharding import shardings
from siglip_jax.params import flatten, unflatten
from siglip_jax.training.curation import CURATOR
from siglip_jax.training.naflex import image_inputs
from siglip_jax.training.objective import Batch, Metrics, Pairs
from siglip_jax.training.recipe import Recipe
from siglip_jax.training.terms import Captioning, SelfDistillation
from siglip_jax.training.views import GLOBAL_AREA, LOCAL_AREA, random_views

TRAINED_GROUPS = ("decoder", "distillation_head", "masked_head", "mask_token")
TEACHER = "teacher"
GROUPS = (*TRAINED_GROUPS, TEACHER)  # groups of parameters that the trained model does not have
_HEADS = {"distillation": "distillation_head", "masked": "masked_head"}


@dataclasses.dataclass(frozen=True)
class JointPairs(Pairs):
    """Contrastive objective of pairs with the further losses of SigLIP 2.

    The contrastive and the captioning loss see the image as it is, the others augmented views of it.

    Attributes:
      module: `SiglipModel`.
      prepare: function from (key, images (n, h, w, 3) uint8) to the pixels that the module takes.
      lora: scale of the low-rank additions, which are under "lora" in the parameters.
      contrast: loss of pairs, "sigmoid" or "softmax".
      equal_texts_match: whether an image matches every text whose token ids equal those of its own.
      mesh: mesh over whose `data` and `fsdp` axes the batch is sharded; None: one device.
      block_size: rows and columns of the largest tile of logits that the losses hold.
      captioning: weight and decoder of the captioning loss.
      self_distillation: weights, views and heads of the losses with a teacher.
      end_token: id of the token that ends a text.

    Example:
      >>> from flax import linen as nn
      >>> from siglip_jax.training import Captioning, JointPairs
      >>> objective = JointPairs(nn.Dense(1), prepare=lambda key, x: x, captioning=Captioning(weight=1.0))
      >>> objective.captioning.weight, objective.self_distillation.used
      (1.0, False)
    """

    captioning: Captioning = Captioning()
    self_distillation: SelfDistillation = SelfDistillation()
    end_token: int = 1

    def embed(self, params: Mapping[str, Any], batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Returns the embeddings of the images and texts of a batch or micro-batch, and the further losses of each.

        Args:
          params: parameters of the module and the further groups, a nested dict.
          batch: `pixels` (n, h, w, 3) uint8, or patches with `spatial_shapes`, and `input_ids` (n, T) int32, matched
            by row; where boxes count, `region_ids` (n, 2, T) int32 and `region_weights` (n, 2, T), as from `Transform`.
          key: random key for augmentation, masks and parallel prediction.

        Returns:
          L2-normalised `images` and `texts` (n, E); `captioning`, `referring`, `grounded`, `distillation` and `masked`
          (n,), the losses that the recipe has; and with a teacher the mean of its outputs for each image,
          (n, prototypes).
        """
        pixels = self.prepare(key, batch["pixels"])
        inputs = image_inputs(pixels, batch)
        image = self._image(params, inputs[0] if len(inputs) == 1 else Patches(*inputs))
        texts = self.apply(params, batch["input_ids"], method="get_text_features")
        found = {"images": normalize(image.embedding), "texts": normalize(texts)}
        if self.captioning.weight:
            mask = inputs[1] if len(inputs) > 1 else None
            found |= self._captioning(params, image, batch, jax.random.fold_in(key, 1), mask)
        if self.self_distillation.used:
            found |= self._against_teacher(params, pixels, jax.random.fold_in(key, 2))
        return found

    def loss(self, params: Mapping[str, Any], embeds: Any, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        """Returns the weighted sum of all losses of the whole batch.

        Args:
          params: parameters of the module; `logit_scale` and `logit_bias` are used.
          embeds: embeddings and losses of the whole batch, as from `embed`.
          batch: arrays of the whole batch.

        Returns:
          The loss, a float32 scalar, and the metrics of `Pairs` with `contrastive_loss` and each further loss, without
          its weight; with a teacher also the mean of its outputs, which `follow` takes.
        """
        loss, metrics = super().loss(params, embeds, batch)
        metrics["contrastive_loss"] = loss
        own = self.self_distillation
        factor = own.factor_of(self.module.config.vision_config.hidden_size)
        weights = {
            "captioning": self.captioning.weight,
            **dict.fromkeys(TASKS, self.captioning.weight * self.captioning.boxes),
            "distillation": factor * own.weight,
            "masked": factor * own.masked_weight,
        }
        for name, weight in weights.items():
            if name in embeds:
                term = jnp.mean(embeds[name])
                if name in TASKS:  # a mean over the images that have boxes
                    have = jnp.any(jnp.asarray(batch["region_weights"]) > 0, axis=(1, 2))
                    term = term / jnp.maximum(jnp.mean(have, dtype=term.dtype), 1 / len(have))
                loss = loss + weight * term
                metrics[f"{name}_loss"] = term
            if f"{name}_mean" in embeds:
                metrics[f"{TEACHER}/{name}"] = jnp.mean(jax.lax.stop_gradient(embeds[f"{name}_mean"]), axis=0)
        return loss, metrics

    def follow(self, frozen: Mapping[str, Any], trained: Mapping[str, Any], metrics: Metrics) -> tuple[Any, Metrics]:
        """Returns the frozen parameters with the teacher of the next step, and the metrics to log.

        Args:
          frozen: frozen parameters, a nested dict.
          trained: trained parameters after the step.
          metrics: metrics of the step, as from `loss`.
        """
        metrics = dict(metrics)
        means = {name: metrics.pop(f"{TEACHER}/{name}") for name in _HEADS if f"{TEACHER}/{name}" in metrics}
        if TEACHER not in frozen:
            return frozen, metrics
        own, flat = self.self_distillation, flatten(frozen) | flatten(trained)
        teacher = {}
        for path, x in flatten(frozen[TEACHER]).items():
            name = path.removesuffix("_center")
            if name != path:
                teacher[path] = update_center(x, means[name], own.center_momentum)
            else:
                teacher[path] = x + (1 - own.momentum) * (flat[path].astype(x.dtype) - x)
        return {**frozen, TEACHER: unflatten(teacher)}, metrics

    def _image(self, params: Mapping[str, Any], pixels: Array | Patches, interpolate: bool = False) -> TowerOutput:
        """Returns the output of the image tower."""
        given = (pixels, True) if interpolate else (pixels,)
        return self.apply(params, *given, method=lambda model, *given: model.vision_model(*given))

    def _captioning(
        self,
        params: Mapping[str, Any],
        image: TowerOutput,
        batch: Batch,
        key: Key[Array, ""],
        mask: Int[Array, "n patches"] | None = None,
    ) -> dict[str, Float[Array, " n"]]:
        """Returns the captioning loss of the examples together, and those with boxes, in a row for each."""
        ids = jnp.asarray(batch["input_ids"])
        if len(ids) != len(image.last_hidden_state):
            raise ValueError(
                f"a batch must have one text for each image for captioning, got {len(image.last_hidden_state)} images"
                f" and {len(ids)} texts; match them by row"
            )
        parallel = jax.random.bernoulli(key, self.captioning.parallel, (len(ids),))
        decoder, table = decoder_of(self.module, self.captioning), params["decoder"]["token_embedding"]["embedding"]
        over: dict[str, Any] = {"block_size": self.block_size, "mesh": self.mesh}

        def loss(ids: Array, weights: Array, parallel: Array | None) -> Array:
            states: Any = decoder.apply({"params": params["decoder"]}, ids, image.last_hidden_state, mask, parallel)
            axis = BATCH_AXES if self.mesh else "data"
            mean = captioning_loss(states, table, ids, weights / len(ids), axis=axis, **over)
            return jnp.broadcast_to(mean, (len(ids),))

        found = {"captioning": loss(ids, caption_weights(ids, self.end_token), parallel)}
        if self.captioning.boxes:
            texts, weights = (jnp.asarray(batch[name]) for name in ("region_ids", "region_weights"))
            found |= {task: loss(texts[:, i], weights[:, i], None) for i, task in enumerate(TASKS)}
        return found

    def _against_teacher(self, params: Mapping[str, Any], pixels: Array, key: Key[Array, ""]) -> dict[str, Array]:
        """Returns the losses with a teacher, and the means of its outputs, of each image."""
        own, config = self.self_distillation, self.module.config.vision_config
        of_view, of_views, of_mask = jax.random.split(key, 3)
        n, teacher, found = len(pixels), params[TEACHER], {}
        temperatures = {
            "student_temperature": own.student_temperature,
            "teacher_temperature": own.teacher_temperature,
        }
        view = random_views(of_view, pixels, 1, config.image_size, GLOBAL_AREA)[:, 0]
        told = jax.lax.stop_gradient(self._image({**params, "vision_model": teacher["vision_model"]}, view))
        head = head_of(self.module, own)

        def by(params: Mapping[str, Any], name: str, x: Array) -> Array:
            out: Any = head.apply({"params": params[_HEADS[name]]}, x)
            return out

        if own.weight:
            size = view_size_of(own, config)
            small = random_views(of_views, pixels, own.views, size, LOCAL_AREA)
            seen = self._image(params, small.reshape(-1, *small.shape[2:]), True)
            student = by(params, "distillation", seen.embedding).reshape(n, own.views, -1)
            target = jax.lax.stop_gradient(by(teacher, "distillation", told.embedding))
            center = teacher["distillation_center"]
            found["distillation"] = distillation_losses(student, target, center, **temperatures)
            found["distillation_mean"] = target.astype(jnp.float32)
        if own.masked_weight:
            side = config.image_size // config.patch_size
            mask = random_patch_mask(of_mask, n, side, side, own.masked)
            with masked_patches(params["mask_token"], mask):
                seen = self._image(params, view)
            target = jax.lax.stop_gradient(by(teacher, "masked", told.last_hidden_state))
            found["masked"] = masked_prediction_losses(
                by(params, "masked", seen.last_hidden_state),
                target,
                teacher["masked_center"],
                mask.reshape(n, -1),
                **temperatures,
            )
            found["masked_mean"] = jnp.mean(target.astype(jnp.float32), axis=1)
        return found


def masked_patches(
    token: Float[Array, " width"], mask: Bool[Array, "images rows columns"]
) -> contextlib.AbstractContextManager[None]:
    """Returns a context within which image towers see a token in place of masked patches; positions are added to it.

    Args:
      token: embedding of a masked patch.
      mask: True for masked patches.
    """

    def intercept(
        call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
        y = call(*args, **kwargs)
        if context.module.name != "patch_embedding" or context.method_name != "__call__":
            return y
        return jnp.where(mask[..., None], token.astype(y.dtype), y)

    return nn.intercept_methods(intercept)


def view_size_of(options: SelfDistillation, config: Any) -> int:
    """Returns width and height of the small views in pixels.

    Args:
      options: options of self-distillation.
      config: configuration of the image tower.
    """
    return options.view_size or max(round(config.image_size * 3 / 7 / config.patch_size), 1) * config.patch_size


def decoder_of(module: Any, options: Captioning) -> CaptionDecoder:
    """Returns the decoder of a model, with its dtype, remat and mesh."""
    return CaptionDecoder(module.config.text_config, module.options, options.layers)


def head_of(module: Any, options: SelfDistillation) -> PrototypeHead:
    """Returns the head of prototypes of a model, with its dtype and mesh."""
    return PrototypeHead(options.prototypes, options.hidden, options.bottleneck, options=module.options)


def init_groups(
    key: Key[Array, ""], recipe: Recipe, module: Any, vision_model: Mapping[str, Any], present: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the groups of parameters that a recipe needs beside those of the model, but for those that are present.

    Args:
      key: random key.
      recipe: recipe of the run, or of a stage of it.
      module: `SiglipModel`.
      vision_model: parameters of the image tower, whose copy is the first teacher.
      present: groups that need not be made.
    """
    config, own, found = module.config, recipe.self_distillation, {}
    width, patches = config.vision_config.hidden_size, config.vision_config.num_patches
    alone = module.clone(mesh=None)
    keys = dict(zip(TRAINED_GROUPS, jax.random.split(key, len(TRAINED_GROUPS)), strict=True))
    if recipe.captioning.weight and "decoder" not in present:
        ids = jnp.zeros((1, config.text_config.max_position_embeddings), jnp.int32)
        decoder = decoder_of(alone, recipe.captioning)
        found["decoder"] = decoder.init(keys["decoder"], ids, jnp.zeros((1, patches, width)))["params"]
    if not own.used or TEACHER in present:
        return found
    teacher: dict[str, Any] = {"vision_model": jax.tree.map(jnp.copy, dict(vision_model))}
    for name, weight in (("distillation", own.weight), ("masked", own.masked_weight)):
        if weight:
            group = _HEADS[name]
            found[group] = head_of(alone, own).init(keys[group], jnp.zeros((1, width)))["params"]
            teacher |= {group: jax.tree.map(jnp.copy, found[group]), f"{name}_center": jnp.zeros(own.prototypes)}
    if own.masked_weight:
        found["mask_token"] = jax.random.normal(keys["mask_token"], (width,)) * 0.02
    return found | {TEACHER: teacher}


def placed_groups(recipe: Recipe, module: Any, params: Mapping[str, Any], mesh: Any) -> dict[str, Any]:
    """Returns parameters with the further groups that a recipe needs and no others, on their devices.

    Args:
      recipe: recipe of the run, or of a stage of it.
      module: module that the recipe trains.
      params: parameters of the model and the groups that are there already, on their devices.
      mesh: mesh over which parameters are sharded; None: one device.
    """
    idle = () if recipe.uses("captioning") else ("decoder",)
    idle += () if recipe.uses("self_distillation") else tuple(name for name in GROUPS if name != "decoder")
    params = {name: x for name, x in params.items() if name not in idle}
    if len(idle) == len(GROUPS):
        return params
    make = functools.partial(init_groups, jax.random.fold_in(jax.random.key(recipe.seed), 2), recipe, module)
    present = {name: None for name in GROUPS if name in params}
    make = functools.partial(make, present=present)
    where = None
    if mesh is not None:
        flat = flatten(jax.eval_shape(make, vision_model=params["vision_model"]))
        where = unflatten(shardings({path: tuple(x.shape) for path, x in flat.items()}, mesh))
    return params | jax.jit(make, out_shardings=where)(vision_model=params["vision_model"])


def without_groups(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of the model alone."""
    return {name: value for name, value in params.items() if name not in (*GROUPS, CURATOR)}
