"""Quantized models on disk: `config.json` beside `quantized.safetensors`, which holds codes and scales.

`siglip_jax.quantization.schemes` documents the schemes. The format is for inference only. Neither the file name nor the
tensor names are those of a float checkpoint, so that other readers, such as `transformers`, find no weights instead of
wrong ones.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from siglip_jax._checks import shown
from siglip_jax._files import inside, naming, written_aside
from siglip_jax.checkpoints.checkpoint import Checkpoint, Contents
from siglip_jax.checkpoints.formats._format import Format, Shardings
from siglip_jax.checkpoints.formats.huggingface import INDEX
from siglip_jax.checkpoints.formats.huggingface import QUANTIZED_WEIGHTS as WEIGHTS
from siglip_jax.checkpoints.formats.huggingface import WEIGHTS as FLOAT_WEIGHTS
from siglip_jax.checkpoints.formats.huggingface import recognises as holds_floats
from siglip_jax.checkpoints.keymap import architecture_of, key_table
from siglip_jax.checkpoints.safetensors_file import read_safetensors, write_safetensors
from siglip_jax.checkpoints.table import FLOATS, NewTensor, Row, check_names_and_shapes
from siglip_jax.configs.config_json import config_file
from siglip_jax.configs.configuration import Config, config_from_dict, read_config
from siglip_jax.params import Shape, flatten, unflatten
from siglip_jax.quantization.layers import is_quantized
from siglip_jax.quantization.schemes import SCHEMES, Quantized, stored_shapes

SECTION = "quantization_config"  # key of config.json
METHOD = "siglip_jax"


def recognises(path: Path) -> bool:
    """Returns whether a directory or file is of this format."""
    return path.name == WEIGHTS if path.is_file() else (path / WEIGHTS).is_file()


def read_contents(path: Path) -> Contents:
    """Reads the headers of a directory, or of the weights file in it; `layout` records the `scheme`.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is corrupt, or tensors are missing, unexpected, or of the wrong shape or dtype.
    """
    file = path if path.is_file() else path / WEIGHTS
    tensors = read_safetensors(inside(file))
    d = read_config(path)
    section = d.pop(SECTION, None)
    scheme = section.get("scheme") if isinstance(section, Mapping) else None
    if not isinstance(scheme, str) or scheme not in SCHEMES or section.get("quant_method") != METHOD:
        raise ValueError(
            f"{config_file(path)}: {SECTION} must have quant_method {METHOD!r} and a scheme among"
            f" {', '.join(SCHEMES)}, got {shown(section)}; use the config.json it was saved with"
        )
    with naming(config_file(path)):
        config = config_from_dict(d)
    architecture = architecture_of(config)
    expected = list(_tensors_of(config, architecture, scheme))
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    check_names_and_shapes(str(path), {key: shape for key, shape, _ in expected}, shapes)
    if wrong := [f"{key}: {tensors[key].dtype}" for key, _, kinds in expected if tensors[key].dtype.name not in kinds]:
        raise ValueError(f"{path}: dtypes must be those of {scheme}, got {', '.join(wrong[:4])}; get it again")
    return Contents(path, "quantized", config, architecture, tensors, {"scheme": scheme})


def _tensors_of(config: Config, architecture: str, scheme: str) -> Iterator[tuple[str, Shape, tuple[str, ...]]]:
    """Yields the name of each tensor, its shape, and the names of the dtypes that it may have."""
    for row in key_table(config, architecture):
        key = row.path.replace("/", ".")
        if is_quantized(row.path):
            codes, scale = stored_shapes(row.shape, scheme)
            yield f"{key}.codes", codes, (SCHEMES[scheme].stored.name,)
            yield f"{key}.scale", scale, ("float32",)
        else:
            yield key, row.shape, FLOATS


def table(config: Config, architecture: str, layout: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of all parameters, with the shapes of the float kernels; `layout` is not used."""
    return [Row(row.path, row.path.replace("/", "."), row.shape) for row in key_table(config, architecture)]


def restore(
    what: str, contents: Contents, rows: list[Row], ignored: Iterable[str], shardings: Shardings | None
) -> dict[str, Any]:
    """Reads the parameters of some rows as views of the file; kernels of dense layers are `Quantized`.

    Args:
      what: not used, since `read_contents` has checked every tensor.
      contents: headers of the file.
      rows: rows of the parameters to read.
      ignored: not used.
      shardings: not used.

    Returns:
      Nested dict of arrays and `Quantized` kernels.
    """
    flat: dict[str, Any] = {}
    for row in rows:
        if is_quantized(row.path):
            codes, scale = (contents.tensors[f"{row.key}.{part}"].view() for part in ("codes", "scale"))
            flat[row.path] = Quantized(codes, scale, contents.layout["scheme"], row.shape[0])
        else:
            flat[row.path] = contents.tensors[row.key].view()
    return unflatten(flat)


def check_directory(directory: Path) -> None:
    """Raises a `ValueError` for a directory with float weights, which may be the only copy."""
    if directory.is_dir() and holds_floats(directory):
        raise ValueError(
            f"{directory}: the directory must not hold float weights, got a float checkpoint, which quantized weights"
            " must not replace; choose another directory"
        )


def write(directory: Path, checkpoint: Checkpoint) -> None:
    """Writes `config.json` and the weights; an older quantized model in the directory is replaced.

    Args:
      directory: directory to write to, created if it does not exist.
      checkpoint: configuration and parameters of a quantized model.

    Raises:
      ValueError: if the parameters are not those of a quantized model of the configuration, or the directory holds
        float weights.
    """
    check_directory(directory)
    tensors: dict[str, NewTensor] = {}
    config, architecture = checkpoint.config, checkpoint.architecture
    schemes, flat = set(), flatten(checkpoint.params)
    for path, x in flat.items():
        key = path.replace("/", ".")
        if isinstance(x, Quantized):
            schemes.add(x.scheme)
            tensors |= {f"{key}.codes": _new(x.codes), f"{key}.scale": _new(x.scale)}
        else:
            tensors[key] = _new(x)
    if len(schemes) != 1:
        raise ValueError(f"params must be those of a quantized model of one scheme, got {sorted(schemes)}")
    scheme = schemes.pop()
    expected = {key: shape for key, shape, _ in _tensors_of(config, architecture, scheme)}
    check_names_and_shapes("the tree of parameters", expected, {key: t.shape for key, t in tensors.items()})
    float_type = next(np.dtype(x.dtype).name for x in flat.values() if not isinstance(x, Quantized))
    section = {"quant_method": METHOD, "scheme": scheme}
    extra = dict(config.extra) | {"architectures": [architecture], "dtype": float_type, SECTION: section}
    directory.mkdir(parents=True, exist_ok=True)
    with written_aside(directory / WEIGHTS) as aside:
        write_safetensors(aside, tensors, {"format": "siglip_jax"})
        (directory / "config.json").unlink(missing_ok=True)  # without it the directory cannot pass for complete
    config.replace(extra=extra).save_pretrained(directory)


def hub_files(names: frozenset[str]) -> list[str]:
    """Returns the weights among the files of a repository, unless float weights are there too."""
    return [WEIGHTS] if WEIGHTS in names and not names & {FLOAT_WEIGHTS, INDEX} else []


def _new(x: Any) -> NewTensor:
    return NewTensor(tuple(x.shape), np.dtype(x.dtype), lambda: np.asarray(x))


FORMAT = Format(
    name="quantized",
    files=WEIGHTS,
    recognises=recognises,
    read_contents=read_contents,
    table=table,
    write=write,
    restore=restore,
    hub_files=hub_files,
    inference_only=True,
)
