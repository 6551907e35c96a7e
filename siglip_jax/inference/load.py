"""`load`: reads a checkpoint and returns a model that is ready to use."""

import functools
import os
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from siglip_jax import models
from siglip_jax._checks import float_dtype
from siglip_jax._files import MAX_PIXELS
from siglip_jax.assets import BUNDLED_MODEL
from siglip_jax.checkpoints.keymap import ARCHITECTURES, TEXT, VISION
from siglip_jax.checkpoints.read import read_contents, select
from siglip_jax.configs.towers import tower_config
from siglip_jax.inference.compiled import keep_compiled
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.weights import Weights
from siglip_jax.models.placement import place_params
from siglip_jax.parallel.sharding import SHARDING_RULES, shardings
from siglip_jax.processing.beside import processor_beside
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
    subfolder: str | None = None,
    variant: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    base: str | os.PathLike[str] | None = None,
) -> Siglip:
    """Loads a model with its processor, ready for inference.

    The model is what the checkpoint holds: both towers, one of them, or an image classifier. Where no processor lies
    beside the weights, the one of the released checkpoint of the same sizes is used; its tokenizer is fetched from the
    Hub or its cache.

    The weights of a tower are read when it is first used, so an unused tower costs no memory. Compiled code is kept in
    the user's cache folder for the next process unless JAX's settings disable that.

    Args:
      name_or_path: local directory or weights file, or a Hub name such as "google/siglip-base-patch16-224"; None: the
        bundled model.
      dtype: dtype of the parameters and of the computation, such as `jnp.bfloat16` or "bfloat16"; None: float32.
      quantization: number format of the kernels of both towers, "int8", "int4", "nf4" or "fp8"; None: floats, or the
        scheme of the checkpoint if that is quantized already.
      attn_implementation: "auto", "xla", "eager", "cudnn" (NVIDIA GPUs) or "pallas" (TPUs); "auto" is the fused
        kernel of the device where that runs and pays, else "xla".
      mesh: mesh over which the parameters are sharded, and over whose axes `data` and `fsdp` batches are; None: the
        default device.
      revision: branch, tag or commit of a Hub repository; None: its `main`.
      local_files_only: whether to use only files that are already on this machine.
      max_pixels: largest number of pixels of an encoded image; a larger one is unreadable. An image with transparency
        takes 16 bytes a pixel while it is decoded.
      subfolder: folder of the directory or repository that holds the checkpoint; None: its top.
      variant: variant of the weights, such as "fp16" for `model.fp16.safetensors`; None: `model.safetensors`.
      cache_dir: folder of the Hub's cache; None: that of `huggingface_hub`.
      token: token for the Hub, False for none; None: that of `HF_TOKEN` or of the login.
      base: checkpoint to merge a LoRA adapter of PEFT into, where `name_or_path` is one; None: the one that its
        configuration names.

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
    contents = read_contents(
        name_or_path or BUNDLED_MODEL,
        for_inference=True,
        revision=revision,
        local_files_only=local_files_only,
        subfolder=subfolder,
        variant=variant,
        cache_dir=cache_dir,
        token=token,
        base=base,
    )
    if (kind := contents.layout.get("part_of")) is not None:
        raise ValueError(
            f"{contents.path}: model_type must be 'siglip' or 'siglip2', got {kind!r}; its image tower is read by"
            f" {contents.architecture}.from_pretrained"
        )
    model_class, parts = getattr(models, contents.architecture), ARCHITECTURES[contents.architecture]
    processor = processor_beside(
        contents.path,
        contents.config,
        images=VISION in parts,
        texts=TEXT in parts,
        local_files_only=local_files_only,
        cache_dir=cache_dir,
        token=token,
    )
    if TEXT in parts:
        processor.tokenizer.check_rows(tower_config(contents.config, TEXT).vocab_size)
    stored = contents.layout.get("scheme")
    if stored is not None or quantization is not None:
        qwix()  # raises if it is not installed, before any weights are read
    if stored is not None and quantization not in (None, stored):
        raise ValueError(
            f"{contents.path}: weights must be floats to be quantized to {quantization}, got {stored}; load without"
            " quantization=, or quantize the float checkpoint"
        )
    on_devices = mesh is not None and quantization is None
    laid_out = functools.partial(shardings, mesh=mesh, rules=SHARDING_RULES) if on_devices else None
    checkpoint = select(contents, None, laid_out)
    place = functools.partial(place_params, dtype=dtype, mesh=mesh, quantization=None if stored else quantization)
    options: Any = {"dtype": dtype, "param_dtype": dtype, "attn_implementation": attn_implementation, "mesh": mesh}
    config: Any = checkpoint.config
    return Siglip(model_class(config, **options), Weights(checkpoint.params, place), processor, config, max_pixels)
