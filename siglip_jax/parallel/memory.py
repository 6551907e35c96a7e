"""What a mesh costs: the bytes that each device holds for a forward pass and for a training step.

Parameters, gradients, moments and batch follow from the sharding rules and are exact. Activations are counted as JAX
keeps them for the backward pass, array by array; all devices hold the same. No device is asked for anything: the mesh
may be larger than what is at hand.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.typing import DTypeLike

from siglip_jax.configuration import SiglipTextConfig
from siglip_jax.parallel.mesh import AXES
from siglip_jax.parallel.rules import RULES, Rules, partition

Shapes = Mapping[str, tuple[int, ...]]

_FLOAT32 = 4  # bytes
_REMAT = (None, "full")
# Arrays of the MLP's width that the activation function and the layer after it keep. jax 0.12 keeps 5 of the 6.
_MLP_ARRAYS = {"gelu_pytorch_tanh": 6, "gelu_new": 6, "relu": 2}
_MLP_ARRAYS_ELSE = 4


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device; the largest over the devices too, since all hold the same.

    Attributes:
      parameters: in float32.
      gradients: in float32; 0 in a forward pass, as are the next two.
      moments: the two of Adam, in float32.
      activations: kept for the backward pass.
      batch: pixels in float32, ids in int32.
      workspace: what one layer holds while it runs: its arrays, its weights gathered over `fsdp`, and in training
        their gradients before these are summed over the devices.
      loss: embeddings, their gradients and the tiles of logits of the ring.
    """

    parameters: int
    gradients: int
    moments: int
    activations: int
    batch: int
    workspace: int
    loss: int

    @property
    def total(self) -> int:
        """Sum of all; they are not all at their largest at the same moment, so it errs on the high side."""
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where one parameter lies: `spec` as text, `bytes` those that a device holds in float32."""

    path: str
    shape: tuple[int, ...]
    spec: str
    bytes: int


def placements(shapes: Shapes, sizes: Mapping[str, int], rules: Rules = RULES) -> list[Placement]:
    """Returns the sharding table: a row for each parameter, in the order of `shapes`.

    Args:
      shapes: of the parameters by path.
      sizes: of the axes "data", "fsdp" and "tensor"; 1 where left out.

    Raises:
      ValueError: if an axis is unknown or not positive, or no rule covers a parameter.
    """
    mesh = _mesh(sizes)
    table = []
    for path, shape in shapes.items():
        spec = partition(path, shape, mesh, rules)
        local = NamedSharding(mesh, spec).shard_shape(shape)
        table.append(Placement(path, shape, _text(spec), _FLOAT32 * math.prod(local)))
    return table


def estimate(
    config: Any,
    shapes: Shapes,
    sizes: Mapping[str, int],
    batch: int,
    *,
    training: bool,
    remat: str | None = None,
    dtype: DTypeLike = jnp.float32,
    tile: int = 8192,
    rules: Rules = RULES,
) -> Memory:
    """Returns the bytes on each device for both towers' embeddings, or for a step of Adam on the ring loss.

    The batch is cut over `data` and `fsdp`, and the activations with it. Against XLA's own analysis on CPU, layers
    scanned, XXX.

    Args:
      config: of a whole model, or of one tower.
      shapes: of its parameters by path.
      sizes: of the axes "data", "fsdp" and "tensor"; 1 where left out.
      batch: image-text pairs over all devices.
      remat: None or "full", as of the model.
      dtype: compute type; parameters are float32.
      tile: rows and columns of the largest tile of logits; that of `block_size="auto"` on accelerators if not given.

    Raises:
      ValueError: if the batch cannot be cut evenly over the devices, or an argument is none of those above.
    """
    if remat not in _REMAT:
        raise ValueError(f"remat must be one of {', '.join(map(repr, _REMAT))} to be estimated, got {remat!r}")
    table = placements(shapes, sizes, rules)
    devices = math.prod(sizes.get(axis, 1) for axis in ("data", "fsdp"))
    if batch < 1 or batch % devices:
        raise ValueError(
            f"a batch must be a multiple of the {devices} devices along data and fsdp, got {batch}; the next are"
            f" {max(batch // devices, 1) * devices} and {(max(batch // devices, 1) + 1) * devices}"
        )
    tensor, itemsize, examples = sizes.get("tensor", 1), np.dtype(dtype).itemsize, batch // devices
    parameters = sum(row.bytes for row in table)
    towers = [_Tower(c, tensor, itemsize) for c in (getattr(config, n, None) for n in _TOWERS) if c is not None]
    towers = towers or [_Tower(config, tensor, itemsize)]
    weights = _layer_weights(shapes, tensor)
    whole = Memory(
        parameters=parameters,
        gradients=0,
        moments=0,
        activations=0,
        batch=examples * sum(tower.inputs for tower in towers),
        workspace=examples * max(tower.forward for tower in towers) + weights * itemsize,
        loss=0,
    )
    if not training:
        return whole
    casts = 0
    if itemsize != _FLOAT32 and remat is None:
        casts = sum(row.bytes for row in table if "/encoder/" in row.path and row.path.endswith("kernel"))
    local_tile = min(tile, examples)
    return dataclasses.replace(
        whole,
        gradients=parameters,
        moments=2 * parameters,
        activations=examples * sum(tower.kept(remat) for tower in towers) + casts * itemsize // _FLOAT32,
        workspace=examples * max(tower.backward(remat) for tower in towers) + weights * (itemsize + _FLOAT32),
        loss=_FLOAT32 * (7 * examples * towers[-1].width + 3 * local_tile**2),
    )


_TOWERS = ("text_config", "vision_config")


class _Tower:
    """Bytes of one tower for one example on one of the devices along `tensor`."""

    def __init__(self, config: Any, tensor: int, itemsize: int) -> None:
        c = config
        self.width = c.hidden_size
        self.depth, self.itemsize, self.text = c.num_hidden_layers, itemsize, isinstance(c, SiglipTextConfig)
        self.mlp_arrays = _MLP_ARRAYS.get(c.hidden_act, _MLP_ARRAYS_ELSE)
        self.mlp = _cut(c.intermediate_size, tensor)
        self.heads = _cut(c.num_attention_heads, tensor)
        self.head_width = c.hidden_size // c.num_attention_heads
        if self.text:
            self.tokens = c.max_position_embeddings
            self.inputs = 4 * self.tokens
            return
        self.tokens = c.num_patches
        if (size := getattr(c, "image_size", None)) is not None:
            self.inputs = _FLOAT32 * size**2 * c.num_channels
        else:  # patches, mask and grid
            self.inputs = _FLOAT32 * (self.tokens * (c.patch_size**2 * c.num_channels + 1) + 2)

    @property
    def layer(self) -> int:
        """What one layer keeps: queries, keys, values and attention's output; both norms and their outputs; the MLP's
        hidden arrays; attention's weights, unnormalised in float32 and normalised in the compute type."""
        size, scores = self.itemsize, self.heads * self.tokens
        token = 4 * self.heads * self.head_width * size + 2 * self.width * (2 * _FLOAT32 + size)
        token += self.mlp_arrays * self.mlp * size + scores * (_FLOAT32 + size)
        token += _FLOAT32 * (4 + 2 * self.heads)  # mean and deviation of each norm, maximum and sum of each softmax
        return self.tokens * token

    def kept(self, remat: str | None) -> int:
        """All that is kept from the forward pass: of each layer, and of what follows the last one."""
        after = 2 * self.width * _FLOAT32  # the last norm
        if not self.text:  # its output, keys and values of the pooling head
            after += (self.width + 2 * self.heads * self.head_width) * self.itemsize
        layer = self.layer if remat is None else self.tokens * self.width * self.itemsize
        inputs = 0 if self.text else self.inputs * self.itemsize // _FLOAT32  # in the compute type
        return self.depth * layer + self.tokens * after + inputs

    @property
    def forward(self) -> int:
        """The arrays of one layer at its widest point."""
        return self.tokens * self.itemsize * (2 * self.width + 2 * max(self.mlp, self.heads * self.tokens))

    def backward(self, remat: str | None) -> int:
        """The arrays of one layer while its gradients are made, and what `remat` computes again."""
        return self.layer // 2 if remat is None else self.layer


def _cut(size: int, devices: int) -> int:
    return size // devices if size % devices == 0 else size


def _layer_weights(shapes: Shapes, tensor: int) -> int:
    """Returns the number of weights in the largest layer, cut over `tensor` only."""
    layers: dict[str, int] = {}
    for row in placements(shapes, {"tensor": tensor}):
        name, found, _ = row.path.partition("/self_attn/")
        name = name if found else row.path.partition("/mlp/")[0]
        if "/encoder/" in name:
            layers[name] = layers.get(name, 0) + row.bytes // _FLOAT32
    return max(layers.values(), default=0)


def _mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    if unknown := [axis for axis in sizes if axis not in AXES]:
        raise ValueError(f"a mesh has the axes {', '.join(AXES)}, got {', '.join(unknown)}")
    if any(size < 1 for size in sizes.values()):
        raise ValueError(f"the axes of a mesh must be at least 1, got {dict(sizes)}")
    return AbstractMesh(tuple(sizes.get(a, 1) for a in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _text(spec: Any) -> str:
    names = ["+".join((entry,) if isinstance(entry, str) else entry or ("-",)) for entry in spec]
    return ", ".join(names)
