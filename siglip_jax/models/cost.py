"""Memory on each device of a mesh for a forward pass and a training step, and operations of a model.

Nothing runs on a device, so the mesh may be larger than the machine. All devices hold the same number of bytes.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType
from jax.typing import DTypeLike

from siglip_jax.assets import BUNDLED_MODEL
from siglip_jax.checkpoints.keymap import TEXT, VISION, architecture_of, key_table
from siglip_jax.checkpoints.read import read_contents, rows_of
from siglip_jax.configs.configuration import Config, SiglipConfig, SiglipTextConfig, TextConfig, VisionConfig
from siglip_jax.configs.towers import tower_config
from siglip_jax.configs.variants import NAMES
from siglip_jax.losses.tiles import TILE
from siglip_jax.parallel.mesh import AXES
from siglip_jax.parallel.sharding import SHARDING_RULES, partition
from siglip_jax.params import Shape
from siglip_jax.rules import Rules

FLOAT32 = 4  # bytes
EXAMPLES_PER_DEVICE = 32  # default batch of `mesh_memory`
FORWARD_AND_BACKWARD = 3  # the backward pass has two products for each product of the forward pass


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Attributes:
      parameters: parameters in float32.
      gradients: gradients in float32.
      moments: both moments of Adam in float32.
      batch: pixels in float32 and ids in int32.
      activations: arrays kept for the backward pass.
      workspace: arrays of the layer that is being computed, its weights gathered over `fsdp`, and in training the
        gradients of these before they are summed over the devices.
      loss: embeddings, their gradients, and tiles of logits.
    """

    parameters: int = 0
    gradients: int = 0
    moments: int = 0
    batch: int = 0
    activations: int = 0
    workspace: int = 0
    loss: int = 0

    @property
    def total(self) -> int:
        """Sum of all fields. They do not peak at the same moment, so it is rather too high than too low."""
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Placement:
    """Sharding of a parameter.

    Attributes:
      path: path of the parameter.
      shape: shape of the whole parameter.
      spec: mesh axes of each dimension, as in "fsdp, tensor"; "whole" for a replicated parameter.
      bytes: bytes on each device, in float32.
    """

    path: str
    shape: tuple[int, ...]
    spec: str
    bytes: int


def placements(
    shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], rules: Rules = SHARDING_RULES
) -> list[Placement]:
    """Returns the sharding table: one row for each parameter, in the order of `shapes`.

    Args:
      shapes: shape of each parameter, by path.
      sizes: number of devices along "data", "fsdp" and "tensor"; 1 for axes that are left out.
      rules: pairs (pattern over the path of a parameter, mesh axes of its last dimensions), of which the first match
        wins.

    Raises:
      ValueError: if an axis is unknown or not positive, or no rule covers a parameter.
    """
    if any(axis not in AXES or size < 1 for axis, size in sizes.items()):
        raise ValueError(f"sizes must be positive numbers of devices along {', '.join(AXES)}, got {dict(sizes)}")
    mesh = AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    table = []
    for path, shape in shapes.items():
        spec = partition(path, shape, mesh, rules)
        dimensions = [(entry,) if isinstance(entry, str) else entry or () for entry in spec]
        dimensions = [[axis for axis in axes if mesh.shape[axis] > 1] for axes in dimensions]
        shards = math.prod(mesh.shape[axis] for axes in dimensions for axis in axes)
        words = ", ".join("+".join(axes) or "-" for axes in dimensions) if any(dimensions) else "whole"
        table.append(Placement(path, shape, words, FLOAT32 * math.prod(shape) // shards))
    return table


def estimate(
    config: Any,
    table: Sequence[Placement],
    sizes: Mapping[str, int],
    batch: int,
    *,
    training: bool,
    remat: str | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Memory:
    """Returns the bytes on each device for the embeddings of a batch, or for a step of Adam on its ring loss.

    Parameters, gradients, moments and batch are exact. Activations are the arrays that JAX keeps of each layer, for a
    model with a mesh, by `mesh=` or `jax.set_mesh`; without one, and with `scan_layers`, XLA holds up to `fsdp` times
    as much.

    The ratio of this estimate to XLA's own analysis, arguments of the step excluded, for three scanned layers on a CPU
    with jax 0.10 and 0.12: 1.09 to 1.15 in a forward pass; 1.00 to 1.09 in training; 1.07 to 1.23 with remat, highest
    where gradients outweigh activations. Accelerators need less than a CPU, where XLA keeps bfloat16 as float32 and,
    without a scan, undoes remat and takes up to four times the estimate for a forward pass.

    Args:
      config: configuration of a whole model or of one tower.
      table: placements of its parameters.
      sizes: number of devices along "data", "fsdp" and "tensor", as for the table; 1 for axes that are left out.
      batch: image-text pairs over all devices.
      training: whether to estimate a training step instead of a forward pass.
      remat: what the backward pass recomputes: None (nothing) or "full" (everything).
      dtype: compute dtype; parameters are float32.

    Raises:
      ValueError: if the batch is not a multiple of the devices along `data` and `fsdp`, or `remat` has another value.
    """
    if remat not in (None, "full"):
        raise ValueError(f"remat must be None or 'full' for an estimate of memory, got {remat!r}")
    devices = math.prod(sizes.get(axis, 1) for axis in ("data", "fsdp"))
    if batch < devices or batch % devices:
        raise ValueError(f"batch must be a positive multiple of the {devices} devices along data and fsdp, got {batch}")
    parts = {name: tower_config(config, name) for name in (TEXT, VISION)}
    present = [c for name, c in parts.items() if any(row.path.startswith(f"{name}/") for row in table)]
    itemsize = np.dtype(dtype).itemsize
    towers = [_tower(c, sizes.get("tensor", 1), itemsize) for c in present]
    examples, parameters = batch // devices, sum(row.bytes for row in table)
    inputs = examples * sum(t.inputs for t in towers)
    if not training:
        workspace = max(examples * t.widest + t.weights * itemsize for t in towers)
        return Memory(parameters=parameters, batch=inputs, workspace=workspace)
    activations = examples * sum(t.after + t.depth * (t.layer if remat is None else t.stream) for t in towers)
    if itemsize < FLOAT32 and remat is None:  # the weights of the layers in the compute dtype are kept too
        kernels = (row.bytes for row in table if "/encoder/" in row.path and row.path.endswith("/kernel"))
        activations += sum(kernels) * itemsize // FLOAT32
    # Beside what is kept, arrays of two thirds of a layer's size exist while it is differentiated.
    thirds = 2 if remat is None else 5
    workspace = max(examples * thirds * (t.layer + t.activated) // 3 + t.weights * (itemsize + FLOAT32) for t in towers)
    loss = FLOAT32 * (7 * examples * towers[-1].width + 3 * min(TILE, examples) ** 2)
    return Memory(parameters, parameters, 2 * parameters, inputs, activations, workspace, loss)


def mesh_memory(
    name_or_path: str | os.PathLike[str] | None,
    sizes: Mapping[str, int],
    batch: int | None = None,
    *,
    remat: str | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Returns the memory on each device of a mesh and the sharding of every parameter.

    The devices need not exist, and no file of a released checkpoint is read.

    Args:
      name_or_path: local directory or file, or a Hub name; None: the bundled model.
      sizes: number of devices along "data", "fsdp" and "tensor"; 1 for axes that are left out.
      batch: image-text pairs over all devices; None: `EXAMPLES_PER_DEVICE` for each device along `data` and `fsdp`.
      remat: what the backward pass recomputes: None (nothing) or "full" (everything).
      dtype: compute dtype.

    Returns:
      A dictionary that can be written as JSON: `model`, `mesh`, `devices`, `batch`, `remat`, `dtype`, the bytes on each
      device in a `forward` pass and in a `training_step`, by kind and in total, and `table`, one row per parameter.

    Raises:
      FileNotFoundError: if the checkpoint does not exist.
      ValueError: if it is not a SigLIP checkpoint, an axis is unknown, or the batch is not a multiple of the devices.

    Example:
      >>> facts = mesh_memory("google/siglip-base-patch16-224", {"data": 4, "fsdp": 2}, 1024)
      >>> facts["devices"], facts["training_step"]["parameters"] < facts["training_step"]["total"]
      (8, True)
    """
    name, config, shapes = shapes_of(name_or_path)
    sizes = {axis: 1 for axis in AXES} | dict(sizes)
    batch = batch or EXAMPLES_PER_DEVICE * sizes["data"] * sizes["fsdp"]
    table = placements(shapes, sizes)
    options: Any = {"remat": remat, "dtype": dtype}
    forward, training = (estimate(config, table, sizes, batch, training=t, **options) for t in (False, True))
    return {
        "model": name,
        "mesh": sizes,
        "devices": math.prod(sizes.values()),
        "batch": batch,
        **options,
        "forward": {**dataclasses.asdict(forward), "total": forward.total},
        "training_step": {**dataclasses.asdict(training), "total": training.total},
        "table": [dataclasses.asdict(row) for row in table],
    }


def shapes_of(name_or_path: str | os.PathLike[str] | None) -> tuple[str, Config, dict[str, Shape]]:
    """Returns name, configuration and shapes of the parameters, without reading files of released checkpoints."""
    name = None if name_or_path is None else os.fspath(name_or_path)
    variant = None if name is None or Path(name).exists() else NAMES.get(name)
    if variant is not None:
        config = SiglipConfig.from_variant(variant.name)
        return variant.name, config, {row.path: row.shape for row in key_table(config, architecture_of(config))}
    contents = read_contents(BUNDLED_MODEL if name is None else name)
    return name or "the bundled model", contents.config, {row.path: row.shape for row in rows_of(contents)}


class _Tower(NamedTuple):
    """Sizes of a tower, and bytes for one example on one device."""

    width: int
    depth: int
    weights: int  # parameters of a layer, sharded over `tensor` only
    inputs: int  # bytes, as are all that follow
    layer: int  # arrays that a layer keeps
    activated: int  # output of its activation function
    stream: int  # input of a layer
    after: int  # arrays that are kept outside the layers
    widest: int  # arrays of a layer at its widest point, in a forward pass


def _tower(c: TextConfig | VisionConfig, tensor: int, itemsize: int) -> _Tower:
    """Returns the memory of a tower whose layers are sharded over `tensor` devices."""
    width, heads = c.hidden_size, _per_device(c.num_attention_heads, tensor)
    mlp, projected = _per_device(c.intermediate_size, tensor), width // c.num_attention_heads * heads
    if isinstance(c, SiglipTextConfig):
        tokens = c.max_position_embeddings
        inputs, after = FLOAT32 * tokens, (width * itemsize + 2 * FLOAT32) * tokens  # the last norm
    else:
        tokens, pixels = c.num_patches, c.patch_size**2 * c.num_channels
        size = getattr(c, "image_size", None)
        inputs = FLOAT32 * (tokens * (pixels + 1) + 2 if size is None else size**2 * c.num_channels)
        # The last norm and its output, weights and averages of the pooling head, the pixels in the compute dtype.
        after = tokens * ((2 + heads) * FLOAT32 + (2 * width + heads + pixels) * itemsize) + heads * width * itemsize
    scores = heads * tokens
    layer = (
        (4 * projected + 4 * width) * itemsize  # queries, keys, values, attention's output; both norms: input, output
        + mlp * itemsize  # input of the activation function
        + (4 + heads) * FLOAT32  # statistics of both norms and of the softmax
    )
    return _Tower(
        width=width,
        depth=c.num_hidden_layers,
        inputs=inputs,
        weights=4 * width * projected + 2 * width * mlp,
        layer=tokens * layer,
        activated=tokens * mlp * itemsize,
        stream=tokens * width * itemsize,
        after=after,
        widest=tokens * (2 * width + 2 * max(mlp, scores)) * itemsize,
    )


def _per_device(size: int, devices: int) -> int:
    """Returns the size of a dimension on each device; one that is not a multiple of the devices is replicated."""
    return size // devices if size % devices == 0 else size


def layer_flops(tower: TextConfig | VisionConfig, tokens: int) -> int:
    """Returns the floating-point operations of one layer for one example: projections, attention, MLP."""
    width, hidden = tower.hidden_size, tower.intermediate_size
    return 2 * tokens * (4 * width * width + 2 * width * hidden) + 4 * tokens * tokens * width


def image_flops(vision: VisionConfig, tokens: int | None = None) -> int:
    """Returns the floating-point operations of the image tower for one image, forward.

    Args:
      vision: configuration of the image tower.
      tokens: patches of the image; None: those of the configuration.
    """
    width, tokens = vision.hidden_size, tokens or vision.num_patches
    patches = 2 * tokens * vision.patch_size**2 * vision.num_channels * width
    head = 0
    if vision.vision_use_head:  # scores and averages of all patches for each head, projections of one vector, its MLP
        head = 4 * tokens * width * vision.num_attention_heads + 2 * (2 * width * width)
        head += 4 * width * vision.intermediate_size
    return patches + vision.num_hidden_layers * layer_flops(vision, tokens) + head


def text_flops(text: SiglipTextConfig) -> int:
    """Returns the floating-point operations of the text tower for one text, forward; look-ups count as none."""
    tokens = text.max_position_embeddings
    return text.num_hidden_layers * layer_flops(text, tokens) + 2 * text.hidden_size * text.embedding_size


def step_flops(
    config: SiglipConfig,
    images: int,
    texts: int,
    *,
    image_trained: bool = True,
    text_trained: bool = True,
    patches: int | None = None,
) -> int:
    """Returns the floating-point operations of a training step, without those that remat repeats.

    Args:
      config: configuration of the model.
      images: images of the step; 0 if their embeddings are given instead.
      texts: texts of the step; 0 if their embeddings are given instead.
      image_trained: whether the image tower is trained; a frozen tower runs forward only.
      text_trained: whether the text tower is trained; a frozen tower runs forward only.
      patches: patches of an image, padding included; None: those of the configuration.
    """
    image = images * image_flops(config.vision_config, patches) * (FORWARD_AND_BACKWARD if image_trained else 1)
    text = texts * text_flops(config.text_config) * (FORWARD_AND_BACKWARD if text_trained else 1)
    return image + text + 2 * FORWARD_AND_BACKWARD * images * texts * config.text_config.embedding_size
