"""Names of checkpoints: local paths as they are, Hub names through `huggingface_hub`."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from siglip_jax import _hub
from siglip_jax.checkpoints.formats import FORMATS

# Names in the topmost folder only, without characters that are special to a shell, a path or a pattern.
_PLAIN = re.compile(r"\w[\w.-]*")


def needed(files: Iterable[str]) -> list[str]:
    """Returns which files of a repository are fetched: configurations, vocabulary and one kind of weights.

    Pickles, msgpack and HDF5 files, files in folders, and names that could lead out of a directory are never fetched.

    Args:
      files: paths of all files in the repository.

    Returns:
      Names of files; the weights are those of the first format that finds its own among them.

    Example:
      >>> needed(["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx"])
      ['config.json', 'model.safetensors']
    """
    names = frozenset(name for name in files if _PLAIN.fullmatch(name))
    weights = next((found for format in FORMATS.values() if (found := format.hub_files(names))), [])
    return _hub.side_files(names) + weights


def resolve(
    name_or_path: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False
) -> Path:
    """Returns the local directory or file of a checkpoint, fetched from the Hub if need be.

    Args:
      name_or_path: local path, or a Hub name such as "google/siglip-base-patch16-224"; a path that exists wins.
      revision: branch, tag or commit of a repository; None: its `main`. Local paths have none.
      local_files_only: never ask the Hub.

    Returns:
      A path on this machine.

    Raises:
      FileNotFoundError: if it is neither a local path nor a repository that can be fetched.
      ValueError: if it is a Hub name and the extra `hub` is not installed.
    """
    return _hub.resolve(name_or_path, needed=needed, revision=revision, local_files_only=local_files_only)
