"""The text head that some files leave out: without one the text tower's state is the embedding itself.

So so400m-patch16-256-i18n is published by big_vision and open_clip; on the Hub of `transformers` it has an identity.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from siglip_jax.checkpoints.table import StoredTensor


def with_text_head(
    tensors: Mapping[str, StoredTensor], embedding: str, kernel: str, bias: str
) -> dict[str, StoredTensor]:
    """Adds an identity under the names `kernel` and `bias` where the tensor `embedding` is there and they are not."""
    table = tensors.get(embedding)
    if table is None or kernel in tensors or bias in tensors or len(table.shape) != 2:
        return dict(tensors)
    width, dtype = table.shape[1], table.dtype
    identity = StoredTensor(table.file, (width, width), dtype, lambda: np.eye(width, dtype=dtype))
    zeros = StoredTensor(table.file, (width,), dtype, lambda: np.zeros(width, dtype))
    return {**tensors, kernel: identity, bias: zeros}


def is_identity(head: Mapping[str, Any] | None) -> bool:
    """Says whether a text head does exactly nothing."""
    if head is None or set(head) != {"kernel", "bias"}:
        return False
    kernel, bias = np.asarray(head["kernel"]), np.asarray(head["bias"])
    return kernel.shape == (len(bias), len(bias)) and not bias.any() and bool((kernel == np.eye(len(bias))).all())


def without_text_head(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a model without its text head."""
    return {**params, "text_model": {k: v for k, v in params["text_model"].items() if k != "head"}}
