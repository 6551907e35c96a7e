"""The text head, which some files omit: without it, the final state of the text tower is the embedding.

big_vision and open_clip publish so400m-patch16-256-i18n without a text head; its checkpoint for `transformers` has an
identity.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from siglip_jax.checkpoints.table import StoredTensor


def with_text_head(
    tensors: Mapping[str, StoredTensor], embedding: str, kernel: str, bias: str
) -> dict[str, StoredTensor]:
    """Adds an identity text head to tensors that have token embeddings but no text head.

    Args:
      tensors: tensors by name.
      embedding: name of the token embeddings.
      kernel: name of the kernel of the text head.
      bias: name of the bias of the text head.

    Returns:
      The tensors, with an identity where there was no text head.
    """
    table = tensors.get(embedding)
    if table is None or kernel in tensors or bias in tensors or len(table.shape) != 2:
        return dict(tensors)
    width, dtype = table.shape[1], table.dtype
    identity = StoredTensor(table.file, (width, width), dtype, lambda: np.eye(width, dtype=dtype))
    zeros = StoredTensor(table.file, (width,), dtype, lambda: np.zeros(width, dtype))
    return {**tensors, kernel: identity, bias: zeros}


def is_identity(head: Mapping[str, Any] | None) -> bool:
    """Returns whether a text head is exactly the identity."""
    if head is None or set(head) != {"kernel", "bias"}:
        return False
    kernel, bias = np.asarray(head["kernel"]), np.asarray(head["bias"])
    return kernel.shape == (len(bias), len(bias)) and not bias.any() and bool((kernel == np.eye(len(bias))).all())


def without_text_head(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a model without the text head."""
    return {**params, "text_model": {k: v for k, v in params["text_model"].items() if k != "head"}}
