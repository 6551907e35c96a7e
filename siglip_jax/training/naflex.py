"""Training at variable resolution (NaFlex): a sequence length for each step, and what objectives make of patches."""

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from siglip_jax.configs.configuration import Config, Siglip2Config


@dataclasses.dataclass(frozen=True)
class Naflex:
    """Sequence lengths of the images, for a model of variable resolution; other models have no use for it.

    Each step has one length, and images keep their proportions. Of every n steps each of the n lengths has one, in an
    order that is drawn from the recipe's seed; a length given twice has twice as many steps.

    Source: Tschannen et al. 2025, arXiv 2502.14786, section 2.4.2.

    Attributes:
      lengths: patches of an image in a step, padding included; one of them for each step.
      full_batch: longest sequence of a step of `batch_size` examples. A step of longer ones has half as many examples,
        or a quarter, and so on, until it has at most as many patches as `batch_size` sequences of this length.

    Raises:
      ValueError: if a length is impossible.

    Example:
      >>> from siglip_jax.training import Naflex
      >>> Naflex().steps(32_768)
      ((128, 32768), (256, 32768), (576, 32768), (784, 32768), (1024, 16384))
      >>> Naflex(lengths=(256, 1024), full_batch=256).steps(64)
      ((256, 64), (1024, 16))
    """

    lengths: tuple[int, ...] = (128, 256, 576, 784, 1024)  # patches of an image in a step, padding included
    full_batch: int = 784  # longest sequence of a step of batch_size examples; longer ones: half as many, a quarter, …

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", tuple(self.lengths))
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"naflex.lengths must be one or more lengths of at least 1 patch, got {self.lengths}")
        if self.full_batch < 1:
            raise ValueError(f"naflex.full_batch must be at least 1 patch, got {self.full_batch}")

    def steps(self, batch_size: int) -> tuple[tuple[int, int], ...]:
        """Returns (length, examples) of the step of each length.

        Args:
          batch_size: examples of a step of up to `full_batch` patches.

        Raises:
          ValueError: if the batch cannot be halved as often as the longest sequences need.
        """
        found = []
        for length in self.lengths:
            parts = 1
            while length > self.full_batch * parts:
                parts *= 2
            if batch_size % parts:
                raise ValueError(
                    f"batch_size must be a multiple of {parts} for sequences of {length} patches with"
                    f" naflex.full_batch={self.full_batch}, got {batch_size}; change one of them"
                )
            found.append((length, batch_size // parts))
        return tuple(found)


def kinds_of(naflex: Naflex, batch_size: int, config: Config | None) -> tuple[tuple[int | None, int], ...]:
    """Returns (length, examples) of each kind of step; the length is None for a model of fixed resolution.

    Args:
      naflex: lengths of the recipe.
      batch_size: batch size of the recipe.
      config: configuration of the model.

    Raises:
      ValueError: if the batch cannot be halved as often as the longest sequences need.
    """
    return naflex.steps(batch_size) if isinstance(config, Siglip2Config) else ((None, batch_size),)


def examples_per_step(kinds: tuple[tuple[int | None, int], ...]) -> int | Fraction:
    """Returns the mean number of examples of a step, exactly."""
    mean = Fraction(sum(examples for _, examples in kinds), len(kinds))
    return mean.numerator if mean.denominator == 1 else mean


def image_inputs(pixels: Float[Array, "..."], batch: Mapping[str, Any]) -> tuple[Array, ...]:
    """Returns the inputs of an image tower: the pixels alone, or patches, their mask and their grids.

    Args:
      pixels: normalised pixels of the batch.
      batch: arrays of the batch; `spatial_shapes` if the pixels are those of patches.
    """
    if "spatial_shapes" not in batch:
        return (pixels,)
    grids = jnp.asarray(batch["spatial_shapes"])
    mask = _used(grids, pixels.shape[1])
    return jnp.where(mask[..., None], pixels, 0), mask.astype(jnp.int32), grids


def padding_of(batch: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
    """Returns the metrics of a batch of patches: `padding`, the share of padding, and `patches`, the length.

    Args:
      batch: arrays of the batch; without `spatial_shapes` there are no metrics.
    """
    if "spatial_shapes" not in batch:
        return {}
    length = batch["pixels"].shape[1]
    used = jnp.mean(jnp.prod(jnp.asarray(batch["spatial_shapes"]).astype(jnp.float32), axis=1))
    return {"padding": 1 - used / length, "patches": jnp.float32(length)}


def _used(grids: Int[Array, "images 2"], length: int) -> Bool[Array, "images {length}"]:
    return jnp.arange(length)[None] < jnp.prod(grids, axis=1)[:, None]
