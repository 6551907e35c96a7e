"""`load`: reads a checkpoint and returns a model that is ready to use."""

import functools
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from siglip_jax._checks import float_dtype
from siglip_jax._files import MAX_PIXELS, naming
from siglip_jax._hub import PROCESSOR_FILES, TOKENIZER_FILES
from siglip_jax.assets import BUNDLED_MODEL
from siglip_jax.checkpoints.hub import resolve
from siglip_jax.checkpoints.keymap import architecture_of
from siglip_jax.checkpoints.read import check_recognised, read_contents, select
from siglip_jax.configs.config_json import config_file
from siglip_jax.configs.configuration import CONFIGS, Siglip2Config, SiglipConfig, read_config
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
    max_pixels: int = MAX_PIXELS,
) -> Siglip:
    """Loads a model with its processor, ready for inference.

    The weights of a tower are read when it is first used, so an unused tower costs no memory. Compiled code is kept in
    the user's cache folder for the next process unless JAX's settings disable that.

    Args:
      name_or_path: local directory or weights file, or a Hub name such as "google/siglip-base-patch16-224"; None: the
        bundled model.
      dtype: dtype of the parameters and of the computation, such as `jnp.bfloat16` or "bfloat16"; None: float32.
      quantization: number format of the kernels of both towers, "int8", "int4", "nf4" or "fp8"; None: floats, or the
        scheme of the checkpoint if that is quantized already.
      attn_implementation: "auto", "xla", "eager" or "cudnn". "cudnn" needs an NVIDIA GPU; "auto" chooses between "xla"
        and "eager".
      mesh: mesh over which the parameters are sharded, and over whose axes `data` and `fsdp` batches are; None: the
        default device.
      revision: branch, tag or commit of a Hub repository; None: its `main`.
      local_files_only: whether to use only files that are already on this machine.
      max_pixels: largest number of pixels of an encoded image; a larger one is unreadable. An image with transparency
        takes 16 bytes a pixel while it is decoded.

    Returns:
      A `Siglip`, the model with its parameters and its processor.

    Raises:
      FileNotFoundError: if the checkpoint, or a file it needs, does not exist.
      ValueError: if it is not a SigLIP checkpoint or is damaged, `quantization` is unknown or differs from the scheme
        of a quantized checkpoint, or the package that quantization needs is not installed.

    Example:
      >>> import siglip_jax
      >>> siglip = siglip_jax.load()
      >>> siglip.encode_text("a horse").shape
      (1, 192)
    """
    keep_compiled()
    if quantization is not None:
        check_scheme(quantization)
    # For the parameters too, else each step converts them.
    dtype = float_dtype("dtype", jnp.float32 if dtype is None else dtype)
    path = resolve(name_or_path or BUNDLED_MODEL, revision=revision, local_files_only=local_files_only)
    check_recognised(path)
    settings = read_config(path)
    if (tower := CONFIGS.get(settings.get("model_type", ""))) is not None and not issubclass(tower, SiglipConfig):
        name = architecture_of(tower())
        raise ValueError(
            f"{path}: load needs a model with both towers, got a {name}; use siglip_jax.{name}.from_pretrained"
        )
    flexible = settings.get("model_type") == Siglip2Config.model_type
    model_class = Siglip2Model if flexible else SiglipModel
    with naming(config_file(path)):  # validates the configuration before any other file is read
        checked = (Siglip2Config if flexible else SiglipConfig).from_dict(settings)
    processor = _processor(path if path.is_dir() else path.parent)
    processor.tokenizer.check_rows(checked.text_config.vocab_size)
    contents = read_contents(path, for_inference=True)
    stored = contents.layout.get("scheme")
    if stored is not None or quantization is not None:
        qwix()  # raises if it is not installed, before any weights are read
    if stored is not None and quantization not in (None, stored):
        raise ValueError(
            f"{path}: weights must be floats to be quantized to {quantization}, got {stored}; load without"
            " quantization=, or quantize the float checkpoint"
        )
    on_devices = mesh is not None and quantization is None
    laid_out = functools.partial(shardings, mesh=mesh, rules=SHARDING_RULES) if on_devices else None
    checkpoint = select(contents, model_class.__name__, laid_out)
    place = functools.partial(place_params, dtype=dtype, mesh=mesh, quantization=None if stored else quantization)
    options: Any = {"dtype": dtype, "param_dtype": dtype, "attn_implementation": attn_implementation, "mesh": mesh}
    config: Any = checkpoint.config
    return Siglip(model_class(config, **options), Weights(checkpoint.params, place), processor, config, max_pixels)


def _processor(directory: Path) -> SiglipProcessor:
    """Returns the processor of a directory.

    Raises:
      FileNotFoundError: if a file is missing.
    """
    if not any((directory / name).is_file() for name in (*TOKENIZER_FILES, *PROCESSOR_FILES)):
        raise FileNotFoundError(
            f"{directory}: load needs the tokenizer and the image processor beside the weights, got neither; save them"
            " there with SiglipProcessor.save_pretrained, or use from_pretrained of the model class"
        )
    return SiglipProcessor.from_pretrained(directory)
