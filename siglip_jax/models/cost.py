"""What a mesh costs: the bytes that each device holds for a forward pass and for a training step.

No device is asked for anything, so the mesh may be larger than what is at hand. All devices hold the same.
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
from siglip_jax.checkpoints.keymap import architecture_of, key_table
from siglip_jax.checkpoints.read import read_contents, rows_of
from siglip_jax.configs.configuration import Config, SiglipConfig, SiglipTextConfig, TextConfig, VisionConfig
from siglip_jax.configs.variants import NAMES
from siglip_jax.losses.tiles import TILE
from siglip_jax.parallel.mesh import AXES
from siglip_jax.parallel.sharding import SHARDING_RULES, partition
from siglip_jax.params import Shape
from siglip_jax.rules import Rules

FLOAT32 = 4  # bytes
EXAMPLES_PER_DEVICE = 32  # of `mesh_memory`, unless a batch is given
FORWARD_AND_BACKWARD = 3  # the backward pass multiplies twice for each product of the forward pass

# Arrays of the MLP's width that a layer keeps. The tanh is counted for jax 0.10; jax 0.12 keeps 5.
_MLP_ARRAYS = {"gelu_pytorch_tanh": 6, "gelu_new": 6, "relu": 2}
_MLP_ARRAYS_ELSE = 4


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device, and so on the fullest one.

    Attributes:
      parameters, gradients, moments: in float32; the moments are the two of Adam.
      batch: pixels in float32, ids in int32.
      activations: kept for the backward pass.
      workspace: of the layer at work: its arrays, its weights gathered over `fsdp`, and in training their gradients
        before these are summed over the devices.
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
        """Sum of all. They are not at their largest at the same moment, so this is rather too much than too little."""
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a parameter lies: `spec` in words, as in "fsdp, tensor" or "whole"; `bytes` on each device, in float32."""

    path: str
    shape: tuple[int, ...]
    spec: str
    bytes: int


def placements(
    shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], rules: Rules = SHARDING_RULES
) -> list[Placement]:
    """Returns the sharding table: a row for each parameter, in the order given.

    Args:
      shapes: of the parameters, by path.
      sizes: devices along "data", "fsdp" and "tensor"; 1 where left out.

    Raises:
      ValueError: if an axis is unknown or not positive, or no rule covers a parameter.
    """
    if any(axis not in AXES or size < 1 for axis, size in sizes.items()):
        raise ValueError(f"expected positive sizes of the axes {', '.join(AXES)}, got {dict(sizes)}")
    mesh = AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    table = []
    for path, shape in shapes.items():
        spec = partition(path, shape, mesh, rules)
        cuts = [(entry,) if isinstance(entry, str) else entry or () for entry in spec]
        cuts = [[axis for axis in axes if mesh.shape[axis] > 1] for axes in cuts]
        parts = math.prod(mesh.shape[axis] for axes in cuts for axis in axes)
        words = ", ".join("+".join(axes) or "-" for axes in cuts) if any(cuts) else "whole"
        table.append(Placement(path, shape, words, FLOAT32 * math.prod(shape) // parts))
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

    Parameters, gradients, moments and batch are exact. Activations are what JAX keeps of each layer, the weights of
    attention included, for a model that knows its mesh, by `mesh=` or `jax.set_mesh`: untold, and with `scan_layers`,
    XLA holds up to `fsdp` times as much.

    This over XLA's own analysis, without the arguments of the step, for three scanned layers on a CPU, jax 0.10 and
    0.12: 0.90 to 1.23 in a forward pass; 1.01 to 1.16 in training; 0.89 to 1.35 with remat, most where gradients
    outweigh activations. Accelerators do without some of what XLA does on a CPU: there bfloat16 is kept as float32,
    and without a scan remat is undone and a forward pass takes up to four times this.

    Args:
      config: of a whole model, or of one tower.
      table: the placements of its parameters.
      sizes: as of the table.
      batch: image-text pairs over all devices.
      remat: None or "full".
      dtype: compute type; parameters are float32.

    Raises:
      ValueError: if the batch cannot be cut evenly over the devices, or remat is another.
    """
    if remat not in (None, "full"):
        raise ValueError(f"the memory is known for remat None and 'full', got {remat!r}")
    devices = math.prod(sizes.get(axis, 1) for axis in ("data", "fsdp"))
    if batch < devices or batch % devices:
        raise ValueError(
            f"a batch of {batch} cannot be cut evenly over {devices} devices along data and fsdp; use a multiple of"
            f" {devices}"
        )
    parts = {name: getattr(config, f"{name}_config", config) for name in ("text", "vision")}
    present = [c for name, c in parts.items() if any(row.path.startswith(f"{name}_model/") for row in table)]
    itemsize = np.dtype(dtype).itemsize
    towers = [_tower(c, sizes.get("tensor", 1), itemsize) for c in present]
    examples, parameters = batch // devices, sum(row.bytes for row in table)
    inputs = examples * sum(t.inputs for t in towers)
    if not training:
        workspace = max(examples * t.widest + t.weights * itemsize for t in towers)
        return Memory(parameters=parameters, batch=inputs, workspace=workspace)
    activations = examples * sum(t.after + t.depth * (t.layer if remat is None else t.stream) for t in towers)
    if itemsize < FLOAT32 and remat is None:  # kept too: the layers' weights in the compute type
        kernels = (row.bytes for row in table if "/encoder/" in row.path and row.path.endswith("/kernel"))
        activations += sum(kernels) * itemsize // FLOAT32
    # Of the arrays of a layer a third is at hand while it is differentiated, two thirds if they are computed again.
    thirds = 1 if remat is None else 2
    workspace = max(examples * thirds * t.layer // 3 + t.weights * (itemsize + FLOAT32) for t in towers)
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
    """Returns the memory that each device of a mesh would hold, and the sharding of every parameter.

    No device has to be there. Of a released checkpoint no file is read.

    Args:
      name_or_path: local directory or file, or a Hub name; None: the bundled model.
      sizes: devices along "data", "fsdp" and "tensor"; 1 where left out.
      batch: image-text pairs over all devices; None: `EXAMPLES_PER_DEVICE` for each device along data and fsdp.
      remat: None or "full", as in `estimate`.
      dtype: compute dtype.

    Returns:
      A dictionary that JSON can hold: `model`, `mesh`, `devices`, `batch`, `remat`, `dtype`, the bytes on each device
      in a `forward` pass and in a `training_step`, by kind and in total, and `table`, a row for each parameter.

    Raises:
      FileNotFoundError: if the checkpoint does not exist.
      ValueError: if it is not a SigLIP checkpoint, an axis is unknown, or the batch cannot be divided evenly.

    Example:
      >>> facts = mesh_memory("google/siglip-base-patch16-224", {"data": 4, "fsdp": 2}, 1024)
      >>> facts["devices"], facts["training_step"]["parameters"] < facts["training_step"]["total"]
      (8, True)
    """
    name, config, shapes = _shapes_of(name_or_path)
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


def _shapes_of(name_or_path: str | os.PathLike[str] | None) -> tuple[str, Config, dict[str, Shape]]:
    """Returns name, configuration and shapes of the parameters; of a released checkpoint no file is read."""
    name = None if name_or_path is None else os.fspath(name_or_path)
    variant = None if name is None or Path(name).exists() else NAMES.get(name)
    if variant is not None:
        config = SiglipConfig.from_variant(variant.name)
        return variant.name, config, {row.path: row.shape for row in key_table(config, architecture_of(config))}
    contents = read_contents(BUNDLED_MODEL if name is None else name)
    return name or "the bundled model", contents.config, {row.path: row.shape for row in rows_of(contents)}


class _Tower(NamedTuple):
    """Sizes, and bytes for one example on one device."""

    width: int
    depth: int
    weights: int  # of a layer, cut over `tensor` only
    inputs: int  # bytes, as all that follow
    layer: int  # kept of a layer
    stream: int  # its input
    after: int  # kept outside the layers
    widest: int  # arrays of a layer at its widest point, in a forward pass


def _tower(c: TextConfig | VisionConfig, tensor: int, itemsize: int) -> _Tower:
    width, heads = c.hidden_size, _cut(c.num_attention_heads, tensor)
    mlp, projected = _cut(c.intermediate_size, tensor), width // c.num_attention_heads * heads
    if isinstance(c, SiglipTextConfig):
        tokens = c.max_position_embeddings
        inputs, after = FLOAT32 * tokens, 2 * width * FLOAT32  # the last norm
    else:
        tokens, pixels = c.num_patches, c.patch_size**2 * c.num_channels
        size = getattr(c, "image_size", None)
        inputs = FLOAT32 * (tokens * (pixels + 1) + 2 if size is None else size**2 * c.num_channels)
        # With its output, the keys and values of the pooling head, and the pixels in the compute type.
        after = 2 * width * FLOAT32 + (width + 2 * projected + pixels) * itemsize
    scores = heads * tokens
    layer = (
        (4 * projected + 2 * width) * itemsize  # queries, keys, values, attention's output, outputs of both norms
        + 4 * width * FLOAT32  # both norms: centred, and scaled
        + _MLP_ARRAYS.get(c.hidden_act, _MLP_ARRAYS_ELSE) * mlp * itemsize
        + scores * (FLOAT32 + itemsize)  # weights of attention, before and after the division by their sum
        + (4 + 2 * heads) * FLOAT32  # statistics of both norms and of the softmax
    )
    return _Tower(
        width=width,
        depth=c.num_hidden_layers,
        inputs=inputs,
        weights=4 * width * projected + 2 * width * mlp,
        layer=tokens * layer,
        stream=tokens * width * itemsize,
        after=tokens * after,
        widest=tokens * (2 * width + 2 * max(mlp, scores)) * itemsize,
    )


def _cut(size: int, devices: int) -> int:
    return size // devices if size % devices == 0 else size


def layer_flops(tower: TextConfig | VisionConfig, tokens: int) -> int:
    """Returns the floating-point operations of one layer for one example: projections, attention, MLP."""
    width, hidden = tower.hidden_size, tower.intermediate_size
    return 2 * tokens * (4 * width * width + 2 * width * hidden) + 4 * tokens * tokens * width


def image_flops(vision: VisionConfig, tokens: int | None = None) -> int:
    """Returns those of the image tower for one image, forward.

    Args:
      tokens: patches of the image; those of the configuration by default.
    """
    width, tokens = vision.hidden_size, tokens or vision.num_patches
    patches = 2 * tokens * vision.patch_size**2 * vision.num_channels * width
    head = 0
    if vision.vision_use_head:  # one query: keys and values of all patches, its own projections, its MLP
        head = 4 * tokens * width * width + 4 * tokens * width + 2 * (2 * width * width)
        head += 4 * width * vision.intermediate_size
    return patches + vision.num_hidden_layers * layer_flops(vision, tokens) + head


def text_flops(text: SiglipTextConfig) -> int:
    """Returns those of the text tower for one text, forward; looking up embeddings is none."""
    tokens = text.max_position_embeddings
    return text.num_hidden_layers * layer_flops(text, tokens) + 2 * text.hidden_size * text.embedding_size


def step_flops(
    config: SiglipConfig, images: int, texts: int, *, image_trained: bool = True, text_trained: bool = True
) -> int:
    """Returns those of a step: a frozen tower runs forward only; what remat computes again is not counted.

    Args:
      images, texts: in the step, 0 where embeddings are given instead.
    """
    image = images * image_flops(config.vision_config) * (FORWARD_AND_BACKWARD if image_trained else 1)
    text = texts * text_flops(config.text_config) * (FORWARD_AND_BACKWARD if text_trained else 1)
    return image + text + 2 * FORWARD_AND_BACKWARD * images * texts * config.text_config.embedding_size
