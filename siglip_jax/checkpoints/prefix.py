"""Prefixes that other programs put before the names of all tensors, such as `module.` and `_orig_mod.`."""

import os
import re
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")

# First components of the names that SigLIP itself has in `transformers`, open_clip and timm.
_OWN = {
    *("text_model", "vision_model", "logit_scale", "logit_bias", "classifier", "embeddings", "encoder", "head"),
    *("visual", "text", "blocks", "patch_embed", "embeds", "attn_pool", "norm", "pos_embed"),
}
# Wrappers of single modules, which may be anywhere in a name: torch.compile, FSDP and recomputed activations.
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def common_prefix(names: Iterable[str]) -> str:
    """Returns the prefix of whole components that all names have before SigLIP's own, with its final dot.

    Args:
      names: names of all tensors of a checkpoint.

    Example:
      >>> common_prefix(["model.logit_scale", "model.text_model.head.bias"])
      'model.'
      >>> common_prefix(["vision_model.post_layernorm.bias", "vision_model.post_layernorm.weight"])
      ''
    """
    split = [name.split(".")[:-1] for name in names]
    parts = os.path.commonprefix(split) if split else []
    own = next((i for i, part in enumerate(parts) if part in _OWN), len(parts))
    return "".join(f"{part}." for part in parts[:own])


def without_prefix(tensors: dict[str, T]) -> tuple[dict[str, T], tuple[str, ...]]:
    """Removes what other programs put before the names of all tensors, and the wrappers within names.

    Args:
      tensors: tensors by name.

    Returns:
      The tensors by their own names, and a sentence for each kind of change.
    """
    notes = []
    plain = {_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    if len(plain) == len(tensors) and set(plain) != set(tensors):
        prefixed = all(name.startswith("_orig_mod.") for name in tensors)
        notes.append(f"{'_orig_mod.' if prefixed else 'names of wrappers'} left out of the names of tensors")
        tensors = plain
    if prefix := common_prefix(tensors):
        notes.append(f"prefix {prefix} left out of the names of tensors")
        tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
    return tensors, tuple(notes)
