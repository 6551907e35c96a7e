"""Forward passes over the devices of this process with `jax.pmap`; new code does better with `jax.jit` over a mesh."""

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
    """Returns `forward(params, *inputs, **inputs)`: `model.apply`, computed on all devices of this process.

    Each device takes an equal part of the first dimension of every input; the outputs come back whole. A model of both
    towers still compares all images with all texts, and its loss is that of the whole batch.

    Args:
      model: any of the modules.
      method: another method of it, as "get_image_features".

    The returned function takes `params` as they are or with a leading axis of devices, as `flax.jax_utils.replicate`
    makes them, and inputs as `model.apply` takes them, by position or by name, or cut into (devices, batch of one
    device, ...) already. It raises a ValueError if a batch cannot be cut evenly over the devices.
    """

    signature = inspect.signature(getattr(model, method or "__call__"))

    @functools.cache
    def compiled(params_axis: int | None, options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
        def run(params: Any, inputs: dict[str, Array]) -> Any:
            keywords: dict[str, Any] = {**inputs, **dict(options)}
            out = model.apply({"params": params}, **keywords, method=method)
            if isinstance(out, SiglipOutput):  # of a part of the batch
                return dataclasses.replace(out, loss=None, logits_per_image=None, logits_per_text=None)
            return dataclasses.replace(out, loss=None) if isinstance(out, ImageClassifierOutput) else out

        return jax.pmap(run, in_axes=(params_axis, 0))

    def forward(params: Any, *positional: Any, **keywords: Any) -> Any:
        keywords = signature.bind(*positional, **keywords).arguments
        options = {name: x for name, x in keywords.items() if x is None or isinstance(x, bool | str)}
        inputs = {name: jnp.asarray(x) for name, x in keywords.items() if name not in options}
        labels = inputs.pop("labels", None)
        found = [inputs[name] for name in ("input_ids", "pixel_values") if name in inputs]
        if not found:
            raise ValueError("expected input_ids or pixel_values beside the parameters, got neither")
        is_cut = found[0].ndim > _dimensions(model, found[0])
        if not is_cut:
            if len(inputs.get("position_ids", ())) == 1:  # the same for all texts
                inputs["position_ids"] = jnp.repeat(inputs["position_ids"], len(found[0]), axis=0)
            inputs = jax.tree.map(_cut, inputs)
        out = compiled(_params_axis(params), tuple(options.items()))(params, inputs)
        out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
        if isinstance(out, SiglipOutput):
            scalars = (np.asarray(params[name]).reshape(-1)[:1] for name in ("logit_scale", "logit_bias"))
            logits = jax.jit(pairwise_logits)(out.image_embeds, out.text_embeds, *scalars)
            loss = sigmoid_loss_of_logits(logits) if options.get("return_loss") else None
            return dataclasses.replace(out, loss=loss, logits_per_image=logits, logits_per_text=logits.T)
        if isinstance(out, ImageClassifierOutput) and labels is not None:
            labels = labels.reshape(-1, *labels.shape[2:]) if is_cut else labels
            loss = classification_loss(jnp.asarray(out.logits), labels, model.config.problem_type)
            return dataclasses.replace(out, loss=loss)
        return out

    return forward


def _dimensions(model: PretrainedModule, x: Array) -> int:
    """Returns how many dimensions an input of the model has: token ids, images, or images cut into patches."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return 2
    return 3 if isinstance(getattr(model.config, "vision_config", model.config), Siglip2VisionConfig) else 4


def _params_axis(params: Any) -> int | None:
    """Returns 0 for parameters with a leading axis of devices."""
    final = ("final_layer_norm/scale", "post_layernorm/scale")  # never stacked, so of one dimension
    return 0 if any(path.endswith(final) and x.ndim == 2 for path, x in flatten(params).items()) else None


def _cut(x: Array) -> Array:
    devices = jax.local_device_count()
    if len(x) % devices:
        raise ValueError(f"a batch of {len(x)} cannot be cut evenly over {devices} devices; drop or repeat some")
    return x.reshape(devices, -1, *x.shape[1:])
