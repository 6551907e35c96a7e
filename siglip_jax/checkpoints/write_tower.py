"""Writing of an image tower back into a copy of the larger model that it was read from."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from siglip_jax._files import check_space, inside, new_directory, output_path
from siglip_jax.checkpoints.formats import huggingface
from siglip_jax.checkpoints.keymap import key_table, narrow
from siglip_jax.checkpoints.read import check_recognised
from siglip_jax.checkpoints.safetensors_file import read_safetensors, replace_tensors
from siglip_jax.checkpoints.table import FLOATS, NewTensor, StoredTensor, new_tensors


def write_tower(directory: str | os.PathLike[str], params: Mapping[str, Any], out: str | os.PathLike[str]) -> None:
    """Writes a fine-tuned image tower into a copy of a larger model, such as PaliGemma; every other byte is unchanged.

    Files are copied one by one, and the tensors of the tower are replaced in the copies, in the dtypes of the files.
    Hidden folders, such as `.git`, are left out.

    Args:
      directory: local directory of the larger model in Hugging Face's format, with all its files; that of a whole
        SigLIP model or of an image classifier works too.
      params: parameters of its image tower, as `SiglipVisionModel.from_pretrained(directory)` returns them, with layers
        stacked (`scan_layers`) or not.
      out: directory to write; it must not exist or be empty, and appears when it is complete.

    Raises:
      FileExistsError: if `out` exists and is not empty.
      FileNotFoundError: if there is no such directory, or a file is missing.
      OSError: if the disk has no room for the copy.
      ValueError: if the directory holds no image tower in floats, the parameters are not those of the tower, or a value
        is too large for the dtype of the file.

    Example:
      >>> import pathlib, tempfile
      >>> import siglip_jax
      >>> from siglip_jax.checkpoints import write_tower
      >>> model = pathlib.Path(siglip_jax.assets.BUNDLED_MODEL)
      >>> tower, params = siglip_jax.SiglipVisionModel.from_pretrained(model)
      >>> params["vision_model"]["post_layernorm"]["bias"] *= 0
      >>> with tempfile.TemporaryDirectory() as home:
      ...     write_tower(model, params, f"{home}/out")
      ...     changed = siglip_jax.read_checkpoint(f"{home}/out")
      >>> changed.architecture, float(abs(changed.params["vision_model"]["post_layernorm"]["bias"]).max())
      ('SiglipModel', 0.0)
    """
    source, target = Path(directory), output_path(out)
    if not source.is_dir():
        raise FileNotFoundError(
            f"{source}: no such directory; pass a local one with all files of the larger model, as 'hf download NAME"
            " --local-dir DIR' makes it"
        )
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"out must be outside of the directory it is copied from, got {target}; choose another")
    new = _new_tensors(source, params)
    files = sorted(_files(source))
    target.parent.mkdir(parents=True, exist_ok=True)
    check_space(target.parent, sum(file.stat().st_size for file in files))
    with new_directory(target) as aside:
        for file in files:
            copy = aside / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
            if file in new:
                replace_tensors(copy, new[file])


def _new_tensors(source: Path, params: Mapping[str, Any]) -> dict[Path, dict[str, NewTensor]]:
    """Returns the new tensors of each file by their names in it."""
    if check_recognised(source).name != huggingface.FORMAT.name:
        raise ValueError(f"{source}: the directory must be of Hugging Face's format, got another; use convert")
    contents = huggingface.read_contents(source)
    kind = "Siglip2VisionModel" if contents.architecture.startswith("Siglip2") else "SiglipVisionModel"
    part = narrow(str(source), contents.config, contents.architecture, kind)
    stored: dict[str, StoredTensor] = {}
    for file in huggingface.weight_files(source):
        stored |= read_safetensors(file)
    names = huggingface.tower_names(source, stored)
    made = new_tensors(f"params (the image tower of {source})", key_table(part.config, kind), params)
    if missing := [own for own in made if own not in names]:
        raise ValueError(
            f"{source}: the model must hold an image tower of SigLIP, got no {missing[0]}; convert it first"
        )
    found: dict[Path, dict[str, NewTensor]] = {}
    for own, tensor in made.items():
        old = stored[names[own]]
        if tensor.dtype.name not in FLOATS:
            raise ValueError(f"params must be floats, got {tensor.dtype} for {own}; pass those of SiglipVisionModel")
        if old.shape != tensor.shape or old.dtype.name not in FLOATS:
            raise ValueError(
                f"{old.file}: {names[own]} must be a float tensor of shape {tensor.shape}, got {old.dtype} of shape"
                f" {old.shape}; write into the model that was not quantized"
            )
        found.setdefault(old.file, {})[names[own]] = _converted(names[own], tensor, old.dtype)
    return found


def _converted(name: str, tensor: NewTensor, dtype: np.dtype) -> NewTensor:
    """Returns a tensor that is converted to the dtype of the file when it is written."""

    def make() -> np.ndarray:
        values = tensor.make()
        with np.errstate(over="ignore"):  # checked below
            converted = values.astype(dtype)
        if not np.isfinite(converted[np.isfinite(values)]).all():
            raise ValueError(
                f"{name} must have values that {dtype} of the file can hold, got up to {np.abs(values).max():.3g};"
                " use a larger model in another dtype"
            )
        return converted

    return NewTensor(tensor.shape, dtype, make)


def _files(source: Path) -> Iterator[Path]:
    """Yields the files of a directory and of its folders, without hidden folders.

    Raises:
      ValueError: if a file is a link out of the directory, or a folder is a link.
    """
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if links := [name for name in folders if Path(folder, name).is_symlink()]:
            raise ValueError(
                f"{Path(folder, links[0])}: the folder must be in the model's, got a link; copy it instead"
            )
        yield from (inside(Path(folder, name), source) for name in names)
