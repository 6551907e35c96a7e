"""Resolution of the names of checkpoints: local paths unchanged, Hub names through `huggingface_hub`."""

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from siglip_jax import _hub
from siglip_jax.checkpoints.foreign import advice_for_pickles, other_file
from siglip_jax.checkpoints.formats import FORMATS, huggingface

# Names in the top folder only, without characters that are special to a shell, a path or a pattern.
_PLAIN = re.compile(r"\w[\w.-]*")


def needed(files: Iterable[str]) -> list[str]:
    """Selects the files of a repository to fetch: configurations, vocabulary and one kind of weights.

    Pickles, msgpack and HDF5 files, files in folders, and names that could lead out of a directory are never selected.

    Args:
      files: paths of all files of the repository.

    Returns:
      Names of the files; the weights are those of the first format whose files are among them.

    Example:
      >>> needed(["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx"])
      ['config.json', 'model.safetensors']
    """
    names = frozenset(name for name in files if _PLAIN.fullmatch(name))
    weights = next((found for format in FORMATS.values() if (found := format.hub_files(names))), [])
    return _hub.side_files(names) + weights


def _needed_with_weights(files: Iterable[str], variant: str | None = None) -> list[str]:
    """Selects files as `needed` does, or those of a variant of the weights.

    Raises:
      LookupError: if the repository holds only weights that are not read, or not the variant.
    """
    files = list(files)
    if variant is not None:
        names = frozenset(name for name in files if _PLAIN.fullmatch(name))
        if not (weights := huggingface.variant_files(names, variant)):
            wanted = huggingface.with_variant(huggingface.WEIGHTS, variant)
            raise LookupError(f"the Hub repository must hold {wanted} for variant={variant!r}, got none; leave it out")
        return _hub.side_files(names) + weights
    found = needed(files)
    if set(found) <= set(_hub.SIDE_FILES):
        if said := advice_for_pickles(files):
            raise LookupError(f"the weights of the Hub repository must be {said}")
        if said := other_file(files):
            raise LookupError(f"the Hub repository must hold a model.safetensors of SigLIP, got none but {said}")
    return found


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
    variant: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
) -> Path:
    """Returns the local directory or file of a checkpoint, fetched from the Hub if necessary.

    Args:
      name_or_path: local path, or a Hub name such as "google/siglip-base-patch16-224"; an existing path takes
        precedence.
      revision: branch, tag or commit of a Hub repository; None: `main`. Ignored for local paths.
      local_files_only: whether to use only local files and the cache, without a request to the Hub.
      subfolder: folder of the directory or repository that holds the checkpoint; None: its top.
      variant: variant of the weights, such as "fp16" for `model.fp16.safetensors`; None: `model.safetensors`.
      cache_dir: folder of the Hub's cache; None: that of `huggingface_hub`.
      token: token for the Hub, False for none; None: that of `HF_TOKEN` or of the login.

    Returns:
      A local path; with a variant that of its weights file or index.

    Raises:
      FileNotFoundError: if the name is neither an existing path nor a repository that can be fetched, or the folder or
        the variant is not there.
      ValueError: if it is a Hub name and the extra `hub` is not installed, or the folder or the variant is no name.
    """
    if variant is not None and not re.fullmatch(r"[\w-]+", variant):
        raise ValueError(f"variant must be a name such as 'fp16', got {variant!r}")
    options: dict[str, Any] = {
        "revision": revision,
        "local_files_only": local_files_only,
        "subfolder": subfolder,
        "cache_dir": cache_dir,
        "token": token,
    }
    local = Path(name_or_path).exists()
    kept: Collection[str] = ()  # of an index's shards; the index itself says which are needed

    def choose(files: Iterable[str]) -> list[str]:
        found = _needed_with_weights(files, variant)
        if not any(huggingface.is_index(name) for name in found):
            return found
        return [name for name in found if not name.endswith(".safetensors") or name in kept]

    path = _hub.resolve(name_or_path, needed=choose, **options)
    index = huggingface.variant_path(path, variant) if variant else path / huggingface.INDEX
    if not local and huggingface.is_index(index.name) and index.is_file():
        kept = huggingface.needed_shards(index)
        path = _hub.resolve(name_or_path, needed=choose, **options)
    return path if variant is None else huggingface.variant_path(path, variant)
