"""The base of all public modules: their fields, `from_pretrained` and `save_pretrained`."""

import dataclasses
import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike

from siglip_jax._checks import float_dtype
from siglip_jax.assets import BUNDLED_MODEL
from siglip_jax.checkpoints.checkpoint import Checkpoint, Contents
from siglip_jax.checkpoints.formats.huggingface import MAX_SHARD_SIZE
from siglip_jax.checkpoints.keymap import ARCHITECTURES, VISION, architecture_of
from siglip_jax.checkpoints.read import read_contents, select, without_classifier
from siglip_jax.checkpoints.surgery import with_resolution
from siglip_jax.checkpoints.write import write_checkpoint
from siglip_jax.configs.configuration import CONFIGS, SiglipConfig, config_from_dict, read_config
from siglip_jax.configs.towers import tower_config
from siglip_jax.models.encoder import Options
from siglip_jax.models.placement import place_params
from siglip_jax.parallel.sharding import SHARDING_RULES, shardings
from siglip_jax.rules import Rules

M = TypeVar("M", bound="PretrainedModule")

logger = logging.getLogger(__name__)

_SIXTEEN_BITS = (
    "{path}: parameters to be trained must be float32, got {dtype}, as they are stored; pass param_dtype=jnp.float32 to"
    " train, or param_dtype=jnp.{dtype} to keep them without this warning"
)


class PretrainedModule(nn.Module):
    """A module that loads and saves its parameters.

    Attributes:
      config: sizes of the model; each subclass names the class of its configuration.
      dtype: compute dtype of the towers; layer norms, softmax and logits are computed in float32 whatever it is.
      param_dtype: dtype of freshly initialised parameters; `logit_scale` and `logit_bias` are always float32.
      attn_implementation: "auto", "xla", "eager", "cudnn" (NVIDIA GPUs) or "pallas" (TPUs). Only "eager" returns
        attention weights; "auto" is the fused kernel of the device where that runs and pays, else "xla".
      remat: what the backward pass recomputes: None (nothing), "full" (everything), "dots" (everything but matrix
        products), "dots_with_no_batch_dims" (everything but matrix products without batch dimensions) or
        "attention_and_mlp_input" (everything but what attention computes and what the MLP takes).
      scan_layers: whether the layers of each tower are stacked on a leading axis and run by `lax.scan`, so that compile
        time does not grow with depth.
      init_scheme: initialisers of fresh parameters, "paper" (those of big_vision: temperature 10, bias -10) or
        "reference" (those of `transformers`: temperature 1, bias 0).
      mesh: mesh over whose axes `data` and `fsdp` the batch is sharded; None: the mesh of `jax.set_mesh`, if any.
    """

    config: Any
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    attn_implementation: str = "auto"
    remat: str | None = None
    scan_layers: bool = False
    init_scheme: str = "paper"
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        """Checks the class of the configuration.

        Raises:
          ValueError: if the configuration is that of another module.
        """
        _check_config(type(self), self.config)
        super().__post_init__()

    @property
    def options(self) -> Options:
        """The fields that every submodule takes unchanged."""
        return Options(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Options)})

    @classmethod
    def from_pretrained(
        cls: type[M],
        name_or_path: str | os.PathLike[str],
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        attn_implementation: str = "auto",
        remat: str | None = None,
        scan_layers: bool = False,
        mesh: Mesh | None = None,
        sharding_rules: Rules[PartitionSpec] | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        config: Any = None,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | None = None,
        image_size: int | None = None,
        subfolder: str | None = None,
        variant: str | None = None,
        key_mapping: Mapping[str, str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        base: str | os.PathLike[str] | None = None,
    ) -> tuple[M, dict[str, Any]]:
        """Loads a module and its parameters from a checkpoint of any format.

        A tower also loads from the checkpoint of a whole model. A classifier loads from any checkpoint of its family;
        where that has no trained last layer, or one of another number of labels than is asked for, the layer starts at
        zero and a warning that names its parameters is logged.

        Args:
          name_or_path: local directory or file, or a Hub name.
          dtype: compute dtype of the module; None: float32.
          param_dtype: dtype of the parameters; `logit_scale` and `logit_bias` keep that of the file where it has more
            bits. None: the dtype of the file, with a warning if that has 16 bits, in which optimizers overflow; the
            bundled model is loaded in float32.
          attn_implementation: "auto", "xla", "eager", "cudnn" (NVIDIA GPUs) or "pallas" (TPUs). Only "eager" returns
            attention weights; "auto" is the fused kernel of the device where that runs and pays, else "xla".
          remat: what the backward pass recomputes: None (nothing), "full" (everything), "dots" (everything but matrix
            products), "dots_with_no_batch_dims" (everything but matrix products without batch dimensions) or
            "attention_and_mlp_input" (everything but what attention computes and what the MLP takes).
          scan_layers: whether to stack the layers of each tower on a leading axis and run them by `lax.scan`.
          mesh: mesh over which the parameters are sharded, each device reading only its shard; None: the default
            device.
          sharding_rules: pairs (pattern over the path of a parameter, mesh axes of its last dimensions), of which the
            first match wins; None: `siglip_jax.parallel.SHARDING_RULES`.
          revision: branch, tag or commit of a Hub repository; None: its `main`.
          local_files_only: whether to use only files that are already on this machine.
          config: configuration to use instead of that of the checkpoint, or the path or Hub name of one; a lone weights
            file needs no `config.json` then. None: that of the checkpoint.
          num_labels: number of labels of a classifier; None: that of the configuration.
          id2label: name of each label of a classifier by its index; None: those of the configuration.
          image_size: height and width of an image in pixels, for which the position table of an image tower of fixed
            resolution is resized as by `interpolate_pos_encoding`; None: that of the configuration.
          subfolder: folder of the directory or repository that holds the checkpoint; None: its top.
          variant: variant of the weights, such as "fp16" for `model.fp16.safetensors`; None: `model.safetensors`.
          key_mapping: replacement of each regular expression in the names of the tensors of safetensors files: the
            first match is replaced, one expression after the other; None: none.
          cache_dir: folder of the Hub's cache; None: that of `huggingface_hub`.
          token: token for the Hub, False for none; None: that of `HF_TOKEN` or of the login.
          base: checkpoint to merge a LoRA adapter of PEFT into, where `name_or_path` is one; None: the one that its
            configuration names.

        Returns:
          The module, and its parameters as a nested dict of jax arrays.

        Raises:
          FileNotFoundError: if a file is missing.
          ValueError: if a file is damaged or does not hold this model, or labels or an image size are given that the
            model has no use for.

        Example:
          >>> import siglip_jax
          >>> model, params = siglip_jax.SiglipModel.from_pretrained(siglip_jax.assets.BUNDLED_MODEL)
          >>> sorted(params)
          ['logit_bias', 'logit_scale', 'text_model', 'vision_model']
        """
        dtype = jnp.float32 if dtype is None else float_dtype("dtype", dtype)
        param_dtype = None if param_dtype is None else float_dtype("param_dtype", param_dtype)
        hub: Any = {"revision": revision, "local_files_only": local_files_only, "cache_dir": cache_dir, "token": token}
        if isinstance(config, (str, os.PathLike)):
            config = config_from_dict(read_config(config, revision, local_files_only))
        contents = read_contents(
            name_or_path, subfolder=subfolder, variant=variant, config=config, key_mapping=key_mapping, base=base, **hub
        )
        contents = _with_labels(cls.__name__, contents, num_labels, id2label)
        rules = sharding_rules or SHARDING_RULES
        checkpoint = select(contents, cls.__name__, None if mesh is None else lambda s: shardings(s, mesh, rules))
        if image_size is not None:
            checkpoint = _at_size(checkpoint, image_size)
        # Of a tower, whose parameters are the last: logit_scale and logit_bias may have another number of bits.
        stored = np.dtype(jax.tree.leaves(checkpoint.params)[-1].dtype)
        params = _with_classifier(checkpoint, stored)
        if param_dtype is None and stored.itemsize < 4:
            if checkpoint.directory is not None and checkpoint.directory.resolve() == BUNDLED_MODEL.resolve():
                param_dtype = jnp.float32
            else:
                warnings.warn(_SIXTEEN_BITS.format(path=contents.path, dtype=stored), stacklevel=2)
        module = cls(
            checkpoint.config,
            dtype=dtype,
            param_dtype=param_dtype or stored,
            attn_implementation=attn_implementation,
            remat=remat,
            scan_layers=scan_layers,
            mesh=mesh,
        )
        return module, place_params(params, param_dtype, scan_layers=scan_layers, mesh=mesh, rules=rules)

    @nn.nowrap
    def save_pretrained(
        self,
        directory: str | os.PathLike[str],
        params: Mapping[str, Any],
        *,
        max_shard_size: int = MAX_SHARD_SIZE,
        overwrite: bool = False,
    ) -> None:
        """Writes `config.json` and safetensors files that `transformers` loads, in the dtypes of the parameters.

        Args:
          directory: directory to write to, created if it does not exist.
          params: parameters of this module, with layers stacked (`scan_layers`) or not.
          max_shard_size: most bytes of a file; a larger checkpoint is split into several files.
          overwrite: whether to replace a checkpoint in the directory even if it holds more than this module, such as
            the whole model of which this is a tower.

        Raises:
          FileExistsError: if the directory holds more than this module and `overwrite` is False.
          ValueError: if the parameters are not those of this module, or the arguments are swapped.

        Example:
          A tower becomes a checkpoint of its own:

          >>> import os, tempfile
          >>> import siglip_jax
          >>> tower, params = siglip_jax.SiglipTextModel.from_pretrained(siglip_jax.assets.BUNDLED_MODEL)
          >>> with tempfile.TemporaryDirectory() as directory:
          ...     tower.save_pretrained(directory, params)
          ...     print(sorted(os.listdir(directory)))
          ['config.json', 'model.safetensors']
        """
        if isinstance(directory, Mapping) or not isinstance(params, Mapping):
            raise ValueError(
                "directory must be a path and params a nested dict, got a"
                f" {type(directory).__name__} and a {type(params).__name__}; call save_pretrained(directory, params)"
            )
        checkpoint = Checkpoint(self.config, dict(params), "huggingface", type(self).__name__)
        write_checkpoint(directory, checkpoint, overwrite=overwrite, max_shard_size=max_shard_size)


def _check_config(module: type, config: Any) -> None:
    """Raises a `ValueError` if a configuration is not of the class that a module takes."""
    wanted = next((c.__name__ for c in module.__mro__ if c.__name__ in ARCHITECTURES), None)
    if wanted is None:
        return
    found = None
    if isinstance(config, tuple(CONFIGS.values())):
        found = architecture_of(config, classifies=wanted.endswith("ForImageClassification"))
    if found != wanted:
        advice = "pass a configuration of its class" if found is None else f"use {found}"
        for part in ("text_config", "vision_config"):
            if hasattr(config, part) and architecture_of(getattr(config, part)) == wanted:
                advice = f"pass config.{part}"
        raise ValueError(f"config must be that of a {wanted}, got a {type(config).__name__}; {advice}")


def _with_labels(
    wanted: str, contents: Contents, num_labels: int | None, id2label: Mapping[int, str] | None
) -> Contents:
    """Returns the contents with other labels, without the last layer of the files if that has another number.

    Raises:
      ValueError: if the model class has no labels, or the two contradict each other.
    """
    if num_labels is None and id2label is None:
        return contents
    name = "num_labels" if id2label is None else "id2label"
    if not wanted.endswith("ForImageClassification") or not isinstance(contents.config, SiglipConfig):
        raise ValueError(f"{name} must be None for {wanted}, got {num_labels or id2label}; leave it out")
    given = {} if num_labels is None else {"num_labels": num_labels}
    given |= {} if id2label is None else {"id2label": id2label}
    config = contents.config.replace(**given)
    held = contents.config.num_labels
    changed = dataclasses.replace(contents, config=config)
    return changed if config.num_labels == held else without_classifier(changed)


def _at_size(checkpoint: Checkpoint, image_size: int) -> Checkpoint:
    config: Any = checkpoint.config
    if getattr(tower_config(config, VISION), "image_size", None) == image_size:
        return checkpoint
    if not checkpoint.architecture.startswith("Siglip2"):
        return with_resolution(checkpoint, image_size).checkpoint
    raise ValueError(
        f"image_size must be None for {checkpoint.architecture}, got {image_size}; its images have any size: pass"
        " max_num_patches to the image processor"
    )


def _with_classifier(checkpoint: Checkpoint, dtype: np.dtype) -> dict[str, Any]:
    """Returns the parameters of a checkpoint, with a zero last layer for a classifier whose files have none."""
    config, params = checkpoint.config, checkpoint.params
    classifies = checkpoint.architecture.endswith("ForImageClassification") and isinstance(config, SiglipConfig)
    if not classifies or "classifier" in params or not config.num_labels:
        return params
    width, count = config.vision_config.hidden_size, config.num_labels
    logger.warning(
        "the checkpoint has no classifier of %d labels; classifier/kernel (%d, %d) and classifier/bias (%d,) are fresh"
        " and start at zero: train them before use",
        *(count, width, count, count),
    )
    return params | {"classifier": {"kernel": np.zeros((width, count), dtype), "bias": np.zeros(count, dtype)}}
