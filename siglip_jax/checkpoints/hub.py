"""Resolution of the names of checkpoints: local paths unchanged, Hub names through `huggingface_hub`."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from siglip_jax import _hub
from siglip_jax.checkpoints.formats import FORMATS

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
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


def advice_for_pickles(names: Iterable[str]) -> str | None:
    """Returns what weights must be instead of the pickles among some files, and how they become that.

    Args:
      names: names of files.

    Returns:
      The end of an error, after "the weights must be"; None if there are no pickles among the files.
    """
    names = sorted(names)
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if not pickles:
        return None
    name = next((name for name in pickles if name.startswith("pytorch_model")), pickles[0])
    if name.startswith("pytorch_model"):
        wanted, advice = "model.safetensors", "load it with transformers and save it with save_pretrained"
    elif name.startswith("open_clip") or "open_clip_config.json" in names:
        wanted = "open_clip_model.safetensors"
        advice = "load it with open_clip and save the model's state_dict() with safetensors.torch.save_file"
    else:
        wanted, advice = "safetensors", "load it with the program that wrote it and save it as safetensors"
    return f"{wanted}, got only {name}, a pickle, which is never opened; {advice}"


def _needed_with_weights(files: Iterable[str]) -> list[str]:
    """Selects files as `needed` does.

    Raises:
      LookupError: if the repository holds pickled weights only.
    """
    files = list(files)
    found = needed(files)
    if set(found) <= set(_hub.SIDE_FILES) and (said := advice_for_pickles(files)):
        raise LookupError(f"the weights of the Hub repository must be {said}")
    return found


def resolve(
    name_or_path: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False
) -> Path:
    """Returns the local directory or file of a checkpoint, fetched from the Hub if necessary.

    Args:
      name_or_path: local path, or a Hub name such as "google/siglip-base-patch16-224"; an existing path takes
        precedence.
      revision: branch, tag or commit of a Hub repository; None: `main`. Ignored for local paths.
      local_files_only: whether to use only local files and the cache, without a request to the Hub.

    Returns:
      A local path.

    Raises:
      FileNotFoundError: if the name is neither an existing path nor a repository that can be fetched.
      ValueError: if it is a Hub name and the extra `hub` is not installed.
    """
    return _hub.resolve(name_or_path, needed=_needed_with_weights, revision=revision, local_files_only=local_files_only)
