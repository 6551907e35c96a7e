"""`load`: from a name, a directory or a file to a model that is ready to use."""

import functools
import os
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from siglip_jax.assets import BUNDLED_MODEL
from siglip_jax.checkpoints.hub import resolve
from siglip_jax.checkpoints.read import read_contents, select
from siglip_jax.configs.configuration import Siglip2Config, SiglipConfig, read_config
from siglip_jax.inference.compiled import keep_compiled
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.weights import Weights
from siglip_jax.models import Siglip2Model, SiglipModel
from siglip_jax.models.placement import place_params
from siglip_jax.parallel.sharding import SHARDING_RULES, shardings
from siglip_jax.processing import SiglipProcessor
from siglip_jax.quantization.schemes import check_scheme, qwix


def load(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    dtype: Any = None,
    quantization: str | None = None,
    attn_implementation: str = "auto",
    mesh: Mesh | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Siglip:
    """Loads a model with its processor, ready to use; the weights of a tower are read when it is first used.

    Code that is compiled is kept for the next process, unless JAX's settings say otherwise; see `inference.compiled`.

    Args:
      name_or_path: a Hub name, a local directory or a weights file; by default the small model inside this package.
      dtype: the type of the parameters and of the computation; float32 by default.
      quantization: "int8", "int4", "nf4" or "fp8": how the matrices of both towers are held, see
        `siglip_jax.quantization.schemes`; float by default. A directory that a quantized model was saved to says itself.
      attn_implementation: as in `SiglipModel`.
      mesh: lay the parameters out over it, and cut batches over its axes `data` and `fsdp`.
      revision: branch, tag or commit on the Hub.
      local_files_only: never ask the Hub.

    Raises:
      FileNotFoundError: if the checkpoint, or a file it needs, is not there.
      ValueError: if the checkpoint is not one of SigLIP or is damaged, or `quantization` is unknown or unlike that of a
        saved one.
    """
    keep_compiled()
    if quantization is not None:
        check_scheme(quantization)
    path = resolve(name_or_path or BUNDLED_MODEL, revision=revision, local_files_only=local_files_only)
    settings = read_config(path)
    flexible = settings.get("model_type") == Siglip2Config.model_type
    model_class = Siglip2Model if flexible else SiglipModel
    (Siglip2Config if flexible else SiglipConfig).from_dict(settings)  # an impossible one is reported before all else
    processor = SiglipProcessor.from_pretrained(path if path.is_dir() else path.parent)
    dtype = jnp.dtype(dtype or jnp.float32)  # parameters too, or every step would convert them again
    contents = read_contents(path, for_inference=True)
    stored = contents.layout.get("scheme")
    if stored is not None or quantization is not None:
        qwix()  # reports that it is missing before anything is read
    if stored is not None and quantization not in (None, stored):
        raise ValueError(
            f"{path}: expected float weights to quantize to {quantization}, found weights of {stored}; load it without"
            " quantization=, or quantize the float checkpoint"
        )
    on_devices = mesh is not None and quantization is None
    laid_out = functools.partial(shardings, mesh=mesh, rules=SHARDING_RULES) if on_devices else None
    checkpoint = select(contents, model_class.__name__, laid_out)
    place = functools.partial(place_params, dtype=dtype, mesh=mesh, quantization=None if stored else quantization)
    options: Any = {"dtype": dtype, "param_dtype": dtype, "attn_implementation": attn_implementation, "mesh": mesh}
    config: Any = checkpoint.config
    return Siglip(model_class(config, **options), Weights(checkpoint.params, place), processor, config)
