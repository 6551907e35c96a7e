"""The list of all parameters, and the table between them and the tensors of a Hugging Face checkpoint.

The only tensors that hold several parameters are the packed projections of the pooling head. The tables of other
formats take paths and shapes from this one.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from siglip_jax.checkpoints.table import LINEAR, PATCHES, SAME, Row
from siglip_jax.configs.configuration import (
    Config,
    Siglip2Config,
    Siglip2VisionConfig,
    SiglipConfig,
    TextConfig,
    VisionConfig,
)

TEXT, VISION, LOGITS, CLASSIFIER = "text_model", "vision_model", "logit_", "classifier"

# Prefixes of the paths that each kind of model class holds.
_PARTS: dict[str, tuple[str, ...]] = {
    "Model": (TEXT, VISION, LOGITS),
    "TextModel": (TEXT,),
    "VisionModel": (VISION,),
    "ForImageClassification": (VISION, CLASSIFIER),
}
ARCHITECTURES = {f"{family}{kind}": parts for family in ("Siglip", "Siglip2") for kind, parts in _PARTS.items()}
"""Prefixes of the parameters' paths of each model class, by its name."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """A model class to read from a checkpoint.

    Attributes:
      config: configuration of the model class.
      architecture: name of the model class, a key of `ARCHITECTURES`.
      fresh_classifier: whether the checkpoint lacks the classifier of this class.
    """

    config: Config
    architecture: str
    fresh_classifier: bool = False

    def of(self, rows: list[Row]) -> list[Row]:
        """Returns the rows of this class.

        Args:
          rows: rows of the checkpoint, or of the model class.
        """
        parts = tuple(p for p in ARCHITECTURES[self.architecture] if not (self.fresh_classifier and p == CLASSIFIER))
        return [row for row in rows if row.path.startswith(parts)]


def narrow(what: str, config: Config, found: str, wanted: str | None) -> Parts:
    """Determines how to read a model class from a checkpoint of the same or another class.

    A tower can be read from a whole model, and an image classifier from a model without a classifier.

    Args:
      what: name of the checkpoint, for errors.
      config: configuration of the checkpoint.
      found: model class that the checkpoint holds.
      wanted: model class to read; None: `found`.

    Returns:
      The model class to read, with its own configuration.

    Raises:
      ValueError: if the checkpoint does not hold that class.
    """
    if wanted is None or wanted == found:
        return Parts(config, found)
    family = _family(config)
    if not isinstance(config, SiglipConfig) or wanted not in [f"{family}{kind}" for kind in _PARTS]:
        raise ValueError(f"{what}: the checkpoint must be one that {wanted} can load, got a {found}")
    part: Config = config
    if wanted.endswith("TextModel"):
        part = config.text_config
    elif wanted.endswith("VisionModel"):
        part = config.vision_config
    return Parts(part, wanted, fresh_classifier=wanted.endswith("ForImageClassification"))


def _family(config: Config) -> str:
    return "Siglip2" if config.model_type.startswith(Siglip2Config.model_type) else "Siglip"


def architecture_of(config: Config, classifies: bool = False) -> str:
    """Returns the model class of a configuration.

    Args:
      config: configuration of a whole model or of one tower.
      classifies: whether the class of a whole model is the image classifier.

    Returns:
      A key of `ARCHITECTURES`.
    """
    if isinstance(config, SiglipConfig):
        return _family(config) + ("ForImageClassification" if classifies else "Model")
    return _family(config) + ("TextModel" if isinstance(config, TextConfig) else "VisionModel")


def key_table(config: Config, architecture: str) -> list[Row]:
    """Returns the table of a model class for the Hugging Face format.

    Args:
      config: configuration of the model class.
      architecture: name of the model class, a key of `ARCHITECTURES`.

    Returns:
      One row per parameter, in the order of the modules.
    """
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


def _mlp(path: str, key: str, c: TextConfig | VisionConfig) -> list[Row]:
    return [
        *_linear(f"{path}/fc1", f"{key}.fc1", c.hidden_size, c.intermediate_size),
        *_linear(f"{path}/fc2", f"{key}.fc2", c.intermediate_size, c.hidden_size),
    ]


def _table(path: str, key: str, rows: int, width: int) -> Row:
    return Row(f"{path}/embedding", f"{key}.weight", (rows, width))


def _encoder(tower: str, c: TextConfig | VisionConfig) -> Iterator[Row]:
    d = c.hidden_size
    for i in range(c.num_hidden_layers):
        path, key = f"{tower}/encoder/layers_{i}", f"{tower}.encoder.layers.{i}"
        yield from _norm(f"{path}/layer_norm1", f"{key}.layer_norm1", d)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{path}/self_attn/{name}", f"{key}.self_attn.{name}", d, d)
        yield from _norm(f"{path}/layer_norm2", f"{key}.layer_norm2", d)
        yield from _mlp(f"{path}/mlp", f"{key}.mlp", c)


def _text(c: TextConfig) -> Iterator[Row]:
    path, d = "text_model", c.hidden_size
    for name, rows in (("token", c.vocab_size), ("position", c.max_position_embeddings)):
        yield _table(f"{path}/embeddings/{name}_embedding", f"{path}.embeddings.{name}_embedding", rows, d)
    yield from _encoder(path, c)
    yield from _norm(f"{path}/final_layer_norm", f"{path}.final_layer_norm", d)
    yield from _linear(f"{path}/head", f"{path}.head", d, c.embedding_size)


def _vision(c: VisionConfig) -> Iterator[Row]:
    path, d = "vision_model", c.hidden_size
    patch, key = f"{path}/embeddings/patch_embedding", f"{path}.embeddings.patch_embedding"
    if isinstance(c, Siglip2VisionConfig):  # flat patches: (row, column, channel)
        yield Row(f"{patch}/kernel", f"{key}.weight", (c.patch_size**2 * c.num_channels, d), LINEAR)
    else:
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
