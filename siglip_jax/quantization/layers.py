"""The layers that are quantized: the kernels of all dense layers, including the attention of the pooling head."""

from collections.abc import Mapping
from typing import Any

from siglip_jax.params import flatten
from siglip_jax.quantization.schemes import Quantized
from siglip_jax.rules import Rules, match_rule

QUANTIZATION_RULES: Rules[bool] = (
    (r".*patch_embedding/kernel", False),  # its input is raw pixels, and it is well below a hundredth of a model
    (r".*/kernel", True),
    (r".*", False),  # embedding tables, norms, biases, the probe, logit_scale and logit_bias
)
"""Whether schemes apply to a parameter, by pattern of its path; the first match wins."""


def is_quantized(path: str) -> bool:
    """Returns whether schemes apply to a parameter, by `QUANTIZATION_RULES`.

    Args:
      path: "/"-separated path of the parameter.

    Returns:
      True for the kernels of dense layers, False for all other parameters.

    Example:
      >>> is_quantized("vision_model/encoder/layers_0/mlp/fc1/kernel")
      True
      >>> is_quantized("vision_model/embeddings/patch_embedding/kernel")
      False
    """
    return match_rule(QUANTIZATION_RULES, path, "quantization rules")


def holds_quantized(params: Mapping[str, Any]) -> bool:
    """Returns whether a tree of parameters belongs to a quantized model.

    Args:
      params: nested dict of arrays and `Quantized` kernels.

    Returns:
      True if any leaf is a `Quantized` kernel.

    Example:
      >>> import numpy as np
      >>> kernel = np.ones((4, 2), np.float32)
      >>> holds_quantized({"head": {"kernel": kernel}})
      False
    """
    return any(isinstance(x, Quantized) for x in flatten(params).values())
