"""Configurations of the two towers and of the whole model: frozen dataclasses that mirror `config.json`.

Mirrors `SiglipTextConfig`, `SiglipVisionConfig` and `SiglipConfig` of `transformers`, and `Siglip2TextConfig`,
`Siglip2VisionConfig` and `Siglip2Config` of the models with variable resolution: same field names, same defaults.
Differences: instances are immutable, invalid values raise at construction instead of at the first call, and every
unknown key is kept in `extra` and written back unchanged.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from siglip_jax._checks import shown
from siglip_jax._files import naming, output_path, write_atomically
from siglip_jax._hub import resolve
from siglip_jax.configs.config_json import ACTIVATIONS as ACTIVATIONS
from siglip_jax.configs.config_json import PROBLEM_TYPES as PROBLEM_TYPES
from siglip_jax.configs.config_json import check_tower, config_file, describes_a_model, labels
from siglip_jax.configs.config_json import read_config as read_config
from siglip_jax.configs.variants import find

C = TypeVar("C", bound="_Config")
OWN_FIELDS = ("average_pooling", "bucket_positions")  # fields of image towers that the reference does not know


@dataclasses.dataclass(frozen=True)
class _Config:
    """Base class of all configurations: conversion to and from dictionaries and `config.json` files.

    Attributes:
      extra: keys of `config.json` that are not fields of the class; written back unchanged, and left out of the hash.
      model_type: value of `model_type` in the `config.json` of the class (class attribute).
    """

    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False, kw_only=True)

    model_type: ClassVar[str]

    @classmethod
    def from_dict(cls: type[C], d: Mapping[str, Any]) -> C:
        """Builds a configuration from the contents of a `config.json`.

        Keys that are not fields of the class are kept in `extra`.

        Args:
          d: fields by name, as parsed from JSON; absent fields take their defaults. `model_type`, where present, must
            be that of the class.

        Returns:
          A configuration of this class.

        Raises:
          ValueError: if `d` is not a mapping, is of another model type, or holds an invalid value.
        """
        if not isinstance(d, Mapping):
            raise ValueError(f"a {cls.model_type} configuration must be a dict of its fields, got {type(d).__name__}")
        if d.get("model_type", cls.model_type) != cls.model_type:
            raise ValueError(_wrong_type(d["model_type"], cls.model_type))
        known = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        extra = {k: v for k, v in d.items() if k not in known and k != "model_type"}
        try:
            return cls(**{k: v for k, v in d.items() if k in known}, extra=extra)
        except TypeError as error:
            raise ValueError(f"the fields of {cls.model_type} must have the documented types, got {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Converts the configuration to the contents of a `config.json`: the inverse of `from_dict`.

        Returns:
          A dictionary of all fields, `model_type` and the keys of `extra`, in types that JSON can hold.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        return {**self.extra, **fields, "model_type": self.model_type}

    @classmethod
    def from_pretrained(
        cls: type[C],
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> C:
        """Reads the `config.json` of a checkpoint.

        The class of one tower also reads its part of the `config.json` of a whole model.

        Args:
          name_or_path: checkpoint directory, weights file with `config.json` beside it, JSON file of any name, or Hub
            name.
          revision: branch, tag or commit of a Hub repository; None: `main`.
          local_files_only: whether to use only local files and the cache, without a request to the Hub.

        Returns:
          A configuration of this class.

        Raises:
          FileNotFoundError: if there is no such checkpoint, or it has no `config.json`.
          ValueError: if `config.json` is not a JSON object, is of another model type, or holds an invalid value.
        """
        path = resolve(name_or_path, revision=revision, local_files_only=local_files_only)
        with naming(config_file(path)):
            return cls.from_dict(cls._select(read_config(path)))

    @classmethod
    def _select(cls, d: dict[str, Any]) -> dict[str, Any]:
        return d

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes `config.json`; an existing one is replaced atomically.

        Args:
          directory: directory to write `config.json` to; created if it does not exist.
        """
        home = output_path(directory, "directory")
        home.mkdir(parents=True, exist_ok=True)
        write_atomically(home / "config.json", self.to_json_string().encode())

    def to_json_string(self) -> str:
        """Converts the configuration to the text of `config.json`.

        Returns:
          JSON with sorted keys, an indent of two spaces and a final newline.
        """
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def replace(self: C, **changes: Any) -> C:
        """Returns a copy with some fields changed; the copy is validated like a new configuration.

        Args:
          **changes: new values by name of the field.

        Returns:
          A configuration of the same class.

        Raises:
          ValueError: if the changed configuration is invalid.
        """
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class SiglipTextConfig(_Config):
    """Configuration of the text tower.

    Attributes:
      vocab_size: number of token embeddings.
      hidden_size: width of the tower; must be divisible by `num_attention_heads`.
      intermediate_size: hidden width of each MLP.
      num_hidden_layers: number of transformer layers.
      num_attention_heads: number of attention heads of each layer.
      max_position_embeddings: length of the position table in tokens, to which texts are padded and truncated.
      hidden_act: activation of the MLPs, one of `ACTIVATIONS`.
      layer_norm_eps: epsilon of every layer normalisation, added to the variance.
      attention_dropout: dropout probability of the attention weights, in [0, 1).
      pad_token_id: id that `config.json` records for padding. This and the next two ids are relics of CLIP, kept
        only to be written back: the ids in use are the tokenizer's.
      bos_token_id: id that `config.json` records for the start of a text; unused.
      eos_token_id: id, or list of ids, that `config.json` records for the end of a text; unused.
      projection_size: width of the text embedding; None: `hidden_size`.
      extra: keys of `config.json` that are not fields of the class; written back unchanged.
      model_type: "siglip_text_model" (class attribute).

    Example:
      >>> config = SiglipTextConfig(hidden_size=64, num_attention_heads=4)
      >>> config.embedding_size, config.max_position_embeddings
      (64, 64)
    """

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 64  # tokens
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int | list[int] | None = dataclasses.field(default=49407, hash=False)
    projection_size: int | None = None

    model_type: ClassVar[str] = "siglip_text_model"

    def __post_init__(self) -> None:
        if self.projection_size is None:
            object.__setattr__(self, "projection_size", self.hidden_size)
        check_tower(self, ("vocab_size", "max_position_embeddings", "projection_size"))

    @property
    def embedding_size(self) -> int:
        """Width of the text embedding: `projection_size`, or `hidden_size` where that is None."""
        return self.projection_size or self.hidden_size

    @classmethod
    def _select(cls, d: dict[str, Any]) -> dict[str, Any]:
        return _sub_config(d, "text_config", cls.model_type)


@dataclasses.dataclass(frozen=True)
class Siglip2TextConfig(SiglipTextConfig):
    """Configuration of the text tower of a NaFlex model, whose image tower has variable resolution.

    The fields are those of `SiglipTextConfig`; only `model_type` differs.

    Attributes:
      vocab_size: number of token embeddings.
      hidden_size: width of the tower; must be divisible by `num_attention_heads`.
      intermediate_size: hidden width of each MLP.
      num_hidden_layers: number of transformer layers.
      num_attention_heads: number of attention heads of each layer.
      max_position_embeddings: length of the position table in tokens, to which texts are padded and truncated.
      hidden_act: activation of the MLPs, one of `ACTIVATIONS`.
      layer_norm_eps: epsilon of every layer normalisation, added to the variance.
      attention_dropout: dropout probability of the attention weights, in [0, 1).
      pad_token_id: id that `config.json` records for padding; unused, as are the next two.
      bos_token_id: id that `config.json` records for the start of a text.
      eos_token_id: id, or list of ids, that `config.json` records for the end of a text.
      projection_size: width of the text embedding; None: `hidden_size`.
      extra: keys of `config.json` that are not fields of the class; written back unchanged.
      model_type: "siglip2_text_model" (class attribute).

    Example:
      >>> Siglip2TextConfig(vocab_size=256_000).model_type
      'siglip2_text_model'
    """

    model_type: ClassVar[str] = "siglip2_text_model"


@dataclasses.dataclass(frozen=True)
class _VisionConfig(_Config):
    """Fields that both classes of image towers share."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    patch_size: int = 16  # pixels, both sides
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    vision_use_head: bool | None = True
    average_pooling: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "vision_use_head", self.vision_use_head is not None and self.vision_use_head)
        for name in ("vision_use_head", "average_pooling"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {shown(getattr(self, name))}")
        if self.average_pooling and self.vision_use_head:
            raise ValueError("vision_use_head must be False with average_pooling, got True; a tower has one of them")

    def to_dict(self) -> dict[str, Any]:
        """Converts the configuration to the contents of a `config.json`: the inverse of `from_dict`.

        Returns:
          A dictionary of all fields, `model_type` and the keys of `extra`, in types that JSON can hold; fields that the
          reference does not know only if they are True.
        """
        d = super().to_dict()
        return {name: value for name, value in d.items() if value or name not in OWN_FIELDS}

    @classmethod
    def _select(cls, d: dict[str, Any]) -> dict[str, Any]:
        return _sub_config(d, "vision_config", cls.model_type)


@dataclasses.dataclass(frozen=True)
class SiglipVisionConfig(_VisionConfig):
    """Configuration of the image tower of fixed resolution.

    An image size that is not a multiple of the patch size is allowed: as in the reference, the remaining pixels at the
    right and bottom are ignored.

    Attributes:
      hidden_size: width of the tower and of the image embedding; must be divisible by `num_attention_heads`.
      intermediate_size: hidden width of each MLP.
      num_hidden_layers: number of transformer layers.
      num_attention_heads: number of attention heads of each layer and of the pooling head.
      num_channels: channels of an image.
      patch_size: height and width of a patch in pixels.
      hidden_act: activation of the MLPs, one of `ACTIVATIONS`.
      layer_norm_eps: epsilon of every layer normalisation, added to the variance.
      attention_dropout: dropout probability of the attention weights, in [0, 1).
      vision_use_head: whether the tower has the attention pooling head that returns the image embedding; None: False.
      average_pooling: whether the image embedding is the mean of the patches after the final layer norm, as with
        `pool_type="gap"` of big_vision; only without the head. Written to `config.json` only if it is True.
      image_size: height and width of an image in pixels; at least `patch_size`.
      bucket_positions: whether a patch of a grid of any size takes the entry of the position table that it falls into,
        as in Idefics 2 and 3, SmolVLM, Phi-4-multimodal and MiniCPM-V. Written to `config.json` only if it is True.
      extra: keys of `config.json` that are not fields of the class; written back unchanged.
      model_type: "siglip_vision_model" (class attribute).

    Example:
      >>> SiglipVisionConfig(image_size=384, patch_size=14).num_patches
      729
    """

    image_size: int = 224  # pixels, both sides
    bucket_positions: bool = False

    model_type: ClassVar[str] = "siglip_vision_model"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tower(self, ("num_channels", "image_size", "patch_size"))
        if not isinstance(self.bucket_positions, bool):
            raise ValueError(f"bucket_positions must be True or False, got {shown(self.bucket_positions)}")
        if self.patch_size > self.image_size:
            raise ValueError(
                f"patch_size must be at most image_size, got patch_size={self.patch_size}, image_size={self.image_size}"
            )

    @property
    def num_patches(self) -> int:
        """Number of patches of an image, and of rows of the position table."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class Siglip2VisionConfig(_VisionConfig):
    """Configuration of the image tower of variable resolution (NaFlex).

    Attributes:
      hidden_size: width of the tower and of the image embedding; must be divisible by `num_attention_heads`.
      intermediate_size: hidden width of each MLP.
      num_hidden_layers: number of transformer layers.
      num_attention_heads: number of attention heads of each layer and of the pooling head.
      num_channels: channels of an image.
      patch_size: height and width of a patch in pixels.
      hidden_act: activation of the MLPs, one of `ACTIVATIONS`.
      layer_norm_eps: epsilon of every layer normalisation, added to the variance.
      attention_dropout: dropout probability of the attention weights, in [0, 1).
      vision_use_head: whether the tower has the attention pooling head that returns the image embedding; None: False.
      average_pooling: whether the image embedding is the mean of the patches after the final layer norm, as with
        `pool_type="gap"` of big_vision; only without the head. Written to `config.json` only if it is True.
      num_patches: rows of the position table, a square number; the table is resized to the patch grid of each image.
      extra: keys of `config.json` that are not fields of the class; written back unchanged.
      model_type: "siglip2_vision_model" (class attribute).

    Example:
      >>> Siglip2VisionConfig(num_patches=256).patch_size
      16
    """

    num_patches: int = 256

    model_type: ClassVar[str] = "siglip2_vision_model"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tower(self, ("num_channels", "num_patches", "patch_size"))
        if math.isqrt(self.num_patches) ** 2 != self.num_patches:
            raise ValueError(f"num_patches must be a square number, got {self.num_patches}")


@dataclasses.dataclass(frozen=True)
class SiglipConfig(_Config):
    """Configuration of the whole model, and of `SiglipForImageClassification`, which reads the label fields.

    Both towers must have the same embedding width.

    Attributes:
      text_config: configuration of the text tower, a `SiglipTextConfig`; a dict of its fields, or None for the
        defaults, is converted to one.
      vision_config: configuration of the image tower, a `SiglipVisionConfig`; a dict of its fields, or None for the
        defaults, is converted to one.
      initializer_factor: factor on the standard deviation of a fresh classifier kernel under
        `init_scheme="reference"`.
      num_labels: number of labels of the classifier; None: the length of `id2label`, or 2 where that is None too, as in
        the reference.
      id2label: name of each label by its index; None: "LABEL_0", "LABEL_1", ….
      label2id: index of each label by its name; None: the inverse of `id2label`.
      problem_type: loss of the classifier, one of `PROBLEM_TYPES`; None: chosen from `num_labels` and the dtype of the
        labels.
      extra: keys of `config.json` that are not fields of the class; written back unchanged.
      model_type: "siglip" (class attribute).
      tower_classes: classes of `text_config` and `vision_config` (class attribute).

    Example:
      >>> config = SiglipConfig.from_variant("siglip-base-patch16-224")
      >>> config.vision_config.image_size, config.text_config.vocab_size
      (224, 32000)
      >>> config.replace(id2label={0: "horse", 1: "lemon", 2: "boat"}).num_labels
      3
      >>> SiglipConfig.from_dict(config.to_dict()) == config
      True
    """

    text_config: Any = None  # a SiglipTextConfig; a dict or None is accepted and replaced by one
    vision_config: Any = None  # a SiglipVisionConfig, likewise
    initializer_factor: float = 1.0
    num_labels: int | None = None
    id2label: Mapping[Any, str] | None = dataclasses.field(default=None, hash=False)
    label2id: Mapping[str, int] | None = dataclasses.field(default=None, hash=False)
    problem_type: str | None = None

    model_type: ClassVar[str] = "siglip"
    tower_classes: ClassVar[tuple[type, type]] = (SiglipTextConfig, SiglipVisionConfig)

    def __post_init__(self) -> None:
        for name, cls in zip(("text_config", "vision_config"), self.tower_classes, strict=True):
            value = getattr(self, name)
            if value is None or isinstance(value, Mapping):
                value = cls.from_dict(value or {})
            if not isinstance(value, cls):
                raise ValueError(f"{name} must be a {cls.__name__} or a dict, got {type(value).__name__}")
            object.__setattr__(self, name, value)
        text_width, image_width = self.text_config.embedding_size, self.vision_config.hidden_size
        if text_width != image_width:
            raise ValueError(
                f"text and image embeddings must have one width, got text projection_size={text_width}"
                f" and vision hidden_size={image_width}"
            )
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(f"problem_type must be None or one of {PROBLEM_TYPES}, got {shown(self.problem_type)}")
        factor = self.initializer_factor
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise ValueError(f"initializer_factor must be a number, got {shown(factor)}")
        if self.label2id is not None and not isinstance(self.label2id, Mapping):
            raise ValueError(f"label2id must be a dict of indices by name, got {shown(self.label2id)}")
        id2label = labels(self.num_labels, self.id2label)
        object.__setattr__(self, "num_labels", len(id2label))
        object.__setattr__(self, "id2label", id2label)
        object.__setattr__(self, "label2id", self.label2id or {label: i for i, label in id2label.items()})

    @classmethod
    def from_variant(cls, name: str) -> "SiglipConfig":
        """Returns the configuration of a released checkpoint, without reading a file.

        Args:
          name: Hub name, with or without "google/", or file name of big_vision, with or without ".npz"; the names of
            all `VARIANTS`.

        Returns:
          A `SiglipConfig`, or a `Siglip2Config` for a NaFlex checkpoint.

        Raises:
          ValueError: if no released checkpoint has this name.
        """
        variant = find(name)
        d = {"text_config": dict(variant.text), "vision_config": dict(variant.vision)}
        return CONFIGS[variant.model_type].from_dict(d)

    def to_dict(self) -> dict[str, Any]:
        """Converts the configuration to the contents of a `config.json`: the inverse of `from_dict`.

        As in the reference, `num_labels`, default names of two labels and a `problem_type` of None are left out.

        Returns:
          A dictionary of the fields, `model_type` and the keys of `extra`, in types that JSON can hold.
        """
        d = super().to_dict()
        d["text_config"], d["vision_config"] = self.text_config.to_dict(), self.vision_config.to_dict()
        del d["num_labels"]  # the length of id2label; the reference does not write it either
        if d["id2label"] == {0: "LABEL_0", 1: "LABEL_1"}:
            del d["id2label"], d["label2id"]
        else:
            d["id2label"] = {str(k): v for k, v in d["id2label"].items()}
        if d["problem_type"] is None:
            del d["problem_type"]
        return d

    def replace(self, **changes: Any) -> "SiglipConfig":
        """Returns a copy with some fields changed; the copy is validated like a new configuration.

        A changed `num_labels` or `id2label` resets the label fields that are not given.

        Args:
          **changes: new values by name of the field.

        Returns:
          A configuration of the same class.

        Raises:
          ValueError: if the changed configuration is invalid.
        """
        if "num_labels" in changes:
            changes = {"id2label": None, "label2id": None} | changes
        elif "id2label" in changes:
            changes = {"num_labels": None, "label2id": None} | changes
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class Siglip2Config(SiglipConfig):
    """Configuration of a whole NaFlex model, and of `Siglip2ForImageClassification`, which reads the label fields.

    The fields are those of `SiglipConfig`; `model_type` and the classes of the towers differ. Released SigLIP 2
    checkpoints of fixed resolution have a `SiglipConfig`.

    Attributes:
      text_config: configuration of the text tower, a `Siglip2TextConfig`; a dict of its fields, or None for the
        defaults, is converted to one.
      vision_config: configuration of the image tower, a `Siglip2VisionConfig`; a dict of its fields, or None for the
        defaults, is converted to one.
      initializer_factor: factor on the standard deviation of a fresh classifier kernel under
        `init_scheme="reference"`.
      num_labels: number of labels of the classifier; None: the length of `id2label`, or 2 where that is None too.
      id2label: name of each label by its index; None: "LABEL_0", "LABEL_1", ….
      label2id: index of each label by its name; None: the inverse of `id2label`.
      problem_type: loss of the classifier, one of `PROBLEM_TYPES`; None: chosen from `num_labels` and the dtype of the
        labels.
      extra: keys of `config.json` that are not fields of the class; written back unchanged.
      model_type: "siglip2" (class attribute).
      tower_classes: classes of `text_config` and `vision_config` (class attribute).

    Example:
      >>> config = Siglip2Config.from_variant("siglip2-base-patch16-naflex")
      >>> config.model_type, config.vision_config.num_patches
      ('siglip2', 256)
    """

    model_type: ClassVar[str] = "siglip2"
    tower_classes: ClassVar[tuple[type, type]] = (Siglip2TextConfig, Siglip2VisionConfig)


TextConfig = SiglipTextConfig
"""Configuration of a text tower; `Siglip2TextConfig` is a subclass."""

VisionConfig = SiglipVisionConfig | Siglip2VisionConfig
"""Configuration of an image tower of fixed or variable resolution."""

Config = SiglipConfig | TextConfig | VisionConfig
"""Any configuration: of a whole model or of one tower."""

_CLASSES = (SiglipConfig, SiglipTextConfig, SiglipVisionConfig, Siglip2Config, Siglip2TextConfig, Siglip2VisionConfig)
CONFIGS: dict[str, Any] = {cls.model_type: cls for cls in _CLASSES}
"""The configuration class of each `model_type`."""


def config_from_dict(d: Mapping[str, Any]) -> Config:
    """Builds a configuration of the class that `model_type` names.

    Args:
      d: fields by name, as parsed from `config.json`; without a `model_type` it is read as a `SiglipConfig`, which must
        then have both `text_config` and `vision_config`.

    Returns:
      A configuration of the class `CONFIGS[d["model_type"]]`.

    Raises:
      ValueError: if `model_type` is not a key of `CONFIGS`, `d` has neither that nor both towers, or holds an invalid
        value.

    Example:
      >>> config_from_dict({"model_type": "siglip_vision_model", "image_size": 64}).num_patches
      16
    """
    if not describes_a_model(d):
        raise ValueError("the configuration must have a model_type, or a text_config and a vision_config, got neither")
    return CONFIGS.get(str(d.get("model_type", SiglipConfig.model_type)), SiglipConfig).from_dict(d)


def _sub_config(d: dict[str, Any], name: str, model_type: str) -> dict[str, Any]:
    if d.get("model_type") == model_type:
        return d
    part = d.get(name)
    family = model_type.split("_")[0]
    whole = d.get("model_type", SiglipConfig.model_type if describes_a_model(d) else None) == family
    # Models that contain an image tower of SigLIP, such as PaliGemma, have their own model types.
    if whole or (isinstance(part, Mapping) and part.get("model_type") == model_type):
        if part is not None and not isinstance(part, Mapping):
            raise ValueError(f"{name} must be an object, got {type(part).__name__}")
        return dict(part or {})
    raise ValueError(_wrong_type(d.get("model_type"), model_type.split("_")[0], model_type))


def _wrong_type(found: Any, *expected: str) -> str:
    cls = CONFIGS.get(found) if isinstance(found, str) else None
    other = f", or read this one with {cls.__name__}" if cls else ""
    names = " or ".join(map(repr, expected))
    return f"model_type must be {names}, got {shown(found)}; use a SigLIP checkpoint{other}"
