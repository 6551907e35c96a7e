"""The one table between parameters and the tensors of a Hugging Face checkpoint; loading and saving derive from it.

Each row names a parameter by its path, the tensor it comes from, and the invertible transform between the two. The
only tensors that hold several parameters are the packed projections of the pooling head: their rows say which part.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from siglip_jax.configuration import SiglipConfig, SiglipTextConfig, SiglipVisionConfig

Config = SiglipConfig | SiglipTextConfig | SiglipVisionConfig
Shape = tuple[int, ...]

TEXT, VISION, LOGITS, CLASSIFIER = "text_model.", "vision_model.", "logit_", "classifier."

# Which parts of the tensor names each class of model holds.
ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "SiglipModel": (TEXT, VISION, LOGITS),
    "SiglipTextModel": (TEXT,),
    "SiglipVisionModel": (VISION,),
    "SiglipForImageClassification": (VISION, CLASSIFIER),
}


class Transform(NamedTuple):
    """A tensor of the file to a parameter, and back; both are views."""

    to_param: Callable[[np.ndarray], np.ndarray]
    to_tensor: Callable[[np.ndarray], np.ndarray]


SAME = Transform(lambda x: x, lambda x: x)
LINEAR = Transform(lambda x: x.T, lambda x: x.T)  # (out, in) <-> (in, out)
PATCHES = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter: where it is in the tree, which tensor it comes from, and its shape in the tree.

    `part` of `parts` equal pieces of the tensor's first axis.
    """

    path: str
    key: str
    shape: Shape
    transform: Transform = SAME
    part: int = 0
    parts: int = 1

    @property
    def tensor_shape(self) -> Shape:
        """Shape of the whole tensor in the file."""
        # A broadcast scalar has the shape without the memory.
        first, *rest = self.transform.to_tensor(np.broadcast_to(np.int8(0), self.shape)).shape
        return (first * self.parts, *rest)


def key_table(config: Config, architecture: str) -> list[Row]:
    """Returns a row for every parameter of a model class, in the order of the modules."""
    parts = ARCHITECTURES[architecture]
    towers: Any = (config.text_config, config.vision_config) if isinstance(config, SiglipConfig) else (config, config)
    rows: list[Row] = []
    if TEXT in parts:
        rows += _text(towers[0])
    if VISION in parts:
        rows += _vision(towers[1])
    if LOGITS in parts:
        rows += [Row("logit_scale", "logit_scale", (1,)), Row("logit_bias", "logit_bias", (1,))]
    if CLASSIFIER in parts and isinstance(config, SiglipConfig) and config.num_labels:
        rows += _linear("classifier", "classifier", config.vision_config.hidden_size, config.num_labels)
    return rows


def _linear(path: str, key: str, size_in: int, size_out: int) -> list[Row]:
    return [
        Row(f"{path}/kernel", f"{key}.weight", (size_in, size_out), LINEAR),
        Row(f"{path}/bias", f"{key}.bias", (size_out,)),
    ]


def _norm(path: str, key: str, width: int) -> list[Row]:
    return [Row(f"{path}/scale", f"{key}.weight", (width,)), Row(f"{path}/bias", f"{key}.bias", (width,))]


def _mlp(path: str, key: str, c: SiglipTextConfig | SiglipVisionConfig) -> list[Row]:
    return [
        *_linear(f"{path}/fc1", f"{key}.fc1", c.hidden_size, c.intermediate_size),
        *_linear(f"{path}/fc2", f"{key}.fc2", c.intermediate_size, c.hidden_size),
    ]


def _table(path: str, key: str, rows: int, width: int) -> Row:
    return Row(f"{path}/embedding", f"{key}.weight", (rows, width))


def _encoder(tower: str, c: SiglipTextConfig | SiglipVisionConfig) -> Iterator[Row]:
    d = c.hidden_size
    for i in range(c.num_hidden_layers):
        path, key = f"{tower}/encoder/layers_{i}", f"{tower}.encoder.layers.{i}"
        yield from _norm(f"{path}/layer_norm1", f"{key}.layer_norm1", d)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{path}/self_attn/{name}", f"{key}.self_attn.{name}", d, d)
        yield from _norm(f"{path}/layer_norm2", f"{key}.layer_norm2", d)
        yield from _mlp(f"{path}/mlp", f"{key}.mlp", c)


def _text(c: SiglipTextConfig) -> Iterator[Row]:
    path, d = "text_model", c.hidden_size
    for name, rows in (("token", c.vocab_size), ("position", c.max_position_embeddings)):
        yield _table(f"{path}/embeddings/{name}_embedding", f"{path}.embeddings.{name}_embedding", rows, d)
    yield from _encoder(path, c)
    yield from _norm(f"{path}/final_layer_norm", f"{path}.final_layer_norm", d)
    yield from _linear(f"{path}/head", f"{path}.head", d, c.embedding_size)


def _vision(c: SiglipVisionConfig) -> Iterator[Row]:
    path, d = "vision_model", c.hidden_size
    patch, key = f"{path}/embeddings/patch_embedding", f"{path}.embeddings.patch_embedding"
    yield Row(f"{patch}/kernel", f"{key}.weight", (c.patch_size, c.patch_size, c.num_channels, d), PATCHES)
    yield Row(f"{patch}/bias", f"{key}.bias", (d,))
    yield _table(f"{path}/embeddings/position_embedding", f"{path}.embeddings.position_embedding", c.num_patches, d)
    yield from _encoder(path, c)
    yield from _norm(f"{path}/post_layernorm", f"{path}.post_layernorm", d)
    if not c.vision_use_head:
        return
    head, key = f"{path}/head", f"{path}.head"
    yield Row(f"{head}/probe", f"{key}.probe", (1, 1, d))
    for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
        at = f"{head}/attention/{name}"
        yield Row(f"{at}/kernel", f"{key}.attention.in_proj_weight", (d, d), LINEAR, part, 3)
        yield Row(f"{at}/bias", f"{key}.attention.in_proj_bias", (d,), SAME, part, 3)
    yield from _linear(f"{head}/attention/out_proj", f"{key}.attention.out_proj", d, d)
    yield from _norm(f"{head}/layernorm", f"{key}.layernorm", d)
    yield from _mlp(f"{head}/mlp", f"{key}.mlp", c)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"a/b/c": leaf} of a nested dict."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        at = f"{prefix}{name}"
        flat |= flatten(value, f"{at}/") if isinstance(value, Mapping) else {at: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


_LAYER = re.compile(r"(.*encoder)/layers_(\d+)/(.*)")
_STACK = re.compile(r"(.*encoder)/layers/(.*)")


def stack_layers(params: Mapping[str, Any], stack: Callable[..., Any] = np.stack) -> dict[str, Any]:
    """Turns `layers_0`, `layers_1`, … of each encoder into one `layers` with a leading axis, for `scan_layers`."""
    flat: dict[str, Any] = {}
    layers: dict[str, dict[int, Any]] = {}
    for path, value in flatten(params).items():
        if m := _LAYER.fullmatch(path):
            layers.setdefault(f"{m[1]}/layers/{m[3]}", {})[int(m[2])] = value
        else:
            flat[path] = value
    return unflatten(flat | {path: stack([parts[i] for i in range(len(parts))]) for path, parts in layers.items()})


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_layers`; a tree that is not stacked comes back as it is."""
    flat: dict[str, Any] = {}
    for path, value in flatten(params).items():
        if m := _STACK.fullmatch(path):
            flat |= {f"{m[1]}/layers_{i}/{m[2]}": value[i] for i in range(value.shape[0])}
        else:
            flat[path] = value
    return unflatten(flat)


def check_names_and_shapes(
    what: str, expected: Mapping[str, Shape], found: Mapping[str, Shape], known: str = "the configuration"
) -> None:
    """Compares two sets of names with shapes.

    Raises:
      ValueError: in one line that lists what is missing, unexpected and of the wrong shape.
    """
    problems = []
    if missing := [name for name in expected if name not in found]:
        problems.append(f"{len(missing)} missing ({_some(missing)})")
    if unexpected := [name for name in found if name not in expected]:
        problems.append(f"{len(unexpected)} unexpected ({_some(unexpected)})")
    if wrong := [n for n, shape in expected.items() if n in found and tuple(found[n]) != shape]:
        listed = _some([f"{n}: expected {expected[n]}, found {tuple(found[n])}" for n in wrong])
        problems.append(f"{len(wrong)} of the wrong shape ({listed})")
    if problems:
        raise ValueError(f"{what} does not fit {known}: {'; '.join(problems)}; use the config.json it was saved with")


def _some(names: list[str], limit: int = 4) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
