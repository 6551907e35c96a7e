"""Forward passes over the devices of this process with `jax.pmap`; new code should use `jax.jit` over a mesh."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from siglip_jax.configs.configuration import Siglip2VisionConfig
from siglip_jax.losses.sigmoid import pairwise_logits, sigmoid_loss_of_logits
from siglip_jax.models.classifier import classification_loss
from siglip_jax.models.outputs import ImageClassifierOutput, SiglipOutput
from siglip_jax.models.pretrained import PretrainedModule
from siglip_jax.params import flatten


def pmap_forward(model: PretrainedModule, method: str | None = None) -> Callable[..., Any]:
    """Returns a function that computes `model.apply` on all devices of this process.

    The first dimension of every input is sharded evenly over the devices and the outputs are gathered. A model of both
    towers still compares all images with all texts, and its loss is that of the whole batch.

    Args:
      model: any module of this package.
      method: name of the method to compute, as "get_image_features"; None: the call itself.

    Returns:
      `forward(params, *inputs, **inputs)`. It takes `params` as they are or with a leading axis of devices, as
      `flax.jax_utils.replicate` returns them, and inputs as `model.apply` takes them, by position or by name, or with
      the leading axes (devices, batch of one device). It raises a ValueError if the batch size is not a multiple of the
      number of devices.

    Example:
      >>> import siglip_jax
      >>> model, params = siglip_jax.SiglipTextModel.from_pretrained(siglip_jax.assets.BUNDLED_MODEL)
      >>> ids = np.ones((2 * jax.local_device_count(), 16), np.int32)
      >>> out = pmap_forward(model)(params, ids)
      >>> out.embedding.shape == (len(ids), 192)
      True
    """

    signature = inspect.signature(getattr(model, method or "__call__"))

    @functools.cache
    def compiled(params_axis: int | None, options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
        def run(params: Any, inputs: dict[str, Array]) -> Any:
            keywords: dict[str, Any] = {**inputs, **dict(options)}
            out = model.apply({"params": params}, **keywords, method=method)
            if isinstance(out, SiglipOutput):  # of one shard of the batch
                return dataclasses.replace(out, loss=None, logits_per_image=None, logits_per_text=None)
            return dataclasses.replace(out, loss=None) if isinstance(out, ImageClassifierOutput) else out

        return jax.pmap(run, in_axes=(params_axis, 0))

    def forward(params: Any, *positional: Any, **keywords: Any) -> Any:
        keywords = signature.bind(*positional, **keywords).arguments
        options = {name: x for name, x in keywords.items() if x is None or isinstance(x, bool | int | str | tuple)}
        inputs = {name: jnp.asarray(x) for name, x in keywords.items() if name not in options}
        labels = inputs.pop("labels", None)
        found = [inputs[name] for name in ("input_ids", "pixel_values") if name in inputs]
        if not found:
            raise ValueError("input_ids or pixel_values must be given beside the parameters, got neither")
        is_sharded = found[0].ndim > _dimensions(model, found[0])
        if not is_sharded:
            if len(inputs.get("position_ids", ())) == 1:  # the same for all texts
                inputs["position_ids"] = jnp.repeat(inputs["position_ids"], len(found[0]), axis=0)
            inputs = jax.tree.map(_shard, inputs)
        out = compiled(_params_axis(params), tuple(options.items()))(params, inputs)
        out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
        if isinstance(out, SiglipOutput):
            scalars = (np.asarray(params[name]).reshape(-1)[:1] for name in ("logit_scale", "logit_bias"))
            logits = jax.jit(pairwise_logits)(out.image_embeds, out.text_embeds, *scalars)
            loss = sigmoid_loss_of_logits(logits) if options.get("return_loss") else None
            return dataclasses.replace(out, loss=loss, logits_per_image=logits, logits_per_text=logits.T)
        if isinstance(out, ImageClassifierOutput) and labels is not None:
            labels = labels.reshape(-1, *labels.shape[2:]) if is_sharded else labels
            loss = classification_loss(jnp.asarray(out.logits), labels, model.config.problem_type)
            return dataclasses.replace(out, loss=loss)
        return out

    return forward


def _dimensions(model: PretrainedModule, x: Array) -> int:
    """Returns the number of dimensions of an input: token ids, images, or images in patches."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return 2
    return 3 if isinstance(getattr(model.config, "vision_config", model.config), Siglip2VisionConfig) else 4


def _params_axis(params: Any) -> int | None:
    """Returns 0 for parameters with a leading axis of devices, else None."""
    final = ("final_layer_norm/scale", "post_layernorm/scale")  # never stacked over layers, so of one dimension
    return 0 if any(path.endswith(final) and x.ndim == 2 for path, x in flatten(params).items()) else None


def _shard(x: Array) -> Array:
    """Splits the first axis into (devices, batch of one device)."""
    devices = jax.local_device_count()
    if len(x) % devices:
        raise ValueError(f"batch size must be a multiple of the {devices} devices, got {len(x)}; drop or repeat some")
    return x.reshape(devices, -1, *x.shape[1:])
