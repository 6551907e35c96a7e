"""What all public modules share: their fields, `from_pretrained` and `save_pretrained`."""

import dataclasses
import logging
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike

from siglip_jax.checkpoints.checkpoint import Checkpoint
from siglip_jax.checkpoints.formats.huggingface import MAX_SHARD_SIZE
from siglip_jax.checkpoints.read import read_contents, select
from siglip_jax.checkpoints.write import write_checkpoint
from siglip_jax.configs.configuration import SiglipConfig
from siglip_jax.models.encoder import Options
from siglip_jax.models.placement import place_params
from siglip_jax.parallel.sharding import SHARDING_RULES, shardings
from siglip_jax.rules import Rules

M = TypeVar("M", bound="PretrainedModule")

logger = logging.getLogger(__name__)


class PretrainedModule(nn.Module):
    """A module that loads and saves its parameters.

    Attributes:
      config: sizes; each subclass says which configuration it takes.
      dtype: compute type of the towers; normalisation, softmax and logits are float32 always.
      param_dtype: type of freshly initialised parameters; `logit_scale` and `logit_bias` are float32 always.
      attn_implementation: "auto", "xla", "eager" (the only one that returns attention weights) or "cudnn".
      remat: None, "full", "dots" or "dots_with_no_batch_dims": what the backward pass computes again.
      scan_layers: stack the layers of each tower on a leading axis and scan over it.
      init_scheme: "paper" (big_vision's, temperature 10, bias -10) or "reference" (that of `transformers`).
      mesh: over whose axes `data` and `fsdp` the examples of a batch are cut; None: that of `jax.set_mesh`, if any.
    """

    config: Any
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    attn_implementation: str = "auto"
    remat: str | None = None
    scan_layers: bool = False
    init_scheme: str = "paper"
    mesh: Mesh | None = None

    @property
    def options(self) -> Options:
        """The fields that are handed down, as one."""
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
    ) -> tuple[M, dict[str, Any]]:
        """Returns the module and its parameters, from a local directory or file or a Hub name, of any format.

        A tower loads from a whole model's checkpoint too. `SiglipForImageClassification` loads from any SigLIP; without
        a trained last layer it gets a zero one, and the log says so.

        Args:
          dtype: compute type, float32 if None.
          param_dtype: type of the parameters, as in the file if None; temperature and bias stay as in the file.
          mesh: lay the parameters out over it; each device reads only its part.
          sharding_rules: (pattern over the path, axes of the last dimensions), first match wins; those of
            `siglip_jax.parallel.sharding` if None.

        Raises:
          FileNotFoundError: if a file is missing.
          ValueError: if a file is corrupt or does not hold this model.
        """
        contents = read_contents(name_or_path, revision=revision, local_files_only=local_files_only)
        rules = sharding_rules or SHARDING_RULES
        checkpoint = select(contents, cls.__name__, None if mesh is None else lambda s: shardings(s, mesh, rules))
        stored = np.dtype(jax.tree.leaves(checkpoint.params)[0].dtype)
        params = _with_classifier(checkpoint, stored)
        module = cls(
            checkpoint.config,
            dtype=dtype or jnp.float32,
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
    ) -> None:
        """Writes `config.json` and safetensors that `transformers` loads, in the types of the parameters.

        Args:
          params: stacked (`scan_layers`) or not.
          max_shard_size: bytes; larger checkpoints are split into shards.

        Raises:
          ValueError: if the parameters are not this module's.
        """
        checkpoint = Checkpoint(self.config, dict(params), "huggingface", type(self).__name__)
        write_checkpoint(directory, checkpoint, max_shard_size=max_shard_size)


def _with_classifier(checkpoint: Checkpoint, dtype: np.dtype) -> dict[str, Any]:
    config, params = checkpoint.config, checkpoint.params
    classifies = checkpoint.architecture.endswith("ForImageClassification") and isinstance(config, SiglipConfig)
    if not classifies or "classifier" in params or not config.num_labels:
        return params
    logger.warning("the checkpoint has no classifier: starting a zero one of %d labels", config.num_labels)
    width, count = config.vision_config.hidden_size, config.num_labels
    return params | {"classifier": {"kernel": np.zeros((width, count), dtype), "bias": np.zeros(count, dtype)}}
