"""Configurations of the two towers and of the whole model: frozen dataclasses that mirror `config.json`.

Mirrors `SiglipTextConfig`, `SiglipVisionConfig` and `SiglipConfig` of `transformers`, and `Siglip2TextConfig`,
`Siglip2VisionConfig` and `Siglip2Config` of the models with variable resolution: same field names, same defaults.
Differences: instances are immutable, impossible values are refused at construction instead of at the first call, and
every key this library does not know is kept in `extra` and written back unchanged.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from siglip_jax._files import write_atomically
from siglip_jax.configs.config_json import ACTIVATIONS as ACTIVATIONS
from siglip_jax.configs.config_json import PROBLEM_TYPES as PROBLEM_TYPES
from siglip_jax.configs.config_json import check_tower, labels
from siglip_jax.configs.config_json import read_config as read_config
from siglip_jax.configs.variants import find

C = TypeVar("C", bound="_Config")


@dataclasses.dataclass(frozen=True)
class _Config:
    """What the three configurations share: dictionaries and files in both directions."""

    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False, kw_only=True)

    model_type: ClassVar[str]

    @classmethod
    def from_dict(cls: type[C], d: Mapping[str, Any]) -> C:
        """Builds a configuration from the contents of a `config.json`; unknown keys are kept in `extra`.

        Raises:
          ValueError: if the dictionary is of another model type, or holds an impossible value.
        """
        if not isinstance(d, Mapping):
            raise ValueError(f"expected the fields of a {cls.model_type} configuration, found a {type(d).__name__}")
        if d.get("model_type", cls.model_type) != cls.model_type:
            raise ValueError(_wrong_type(cls.model_type, d["model_type"]))
        known = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        extra = {k: v for k, v in d.items() if k not in known and k != "model_type"}
        try:
            return cls(**{k: v for k, v in d.items() if k in known}, extra=extra)
        except TypeError as error:
            raise ValueError(f"not a {cls.model_type} configuration: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Returns what `config.json` holds, unknown keys included."""
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
        """Reads `config.json` from a directory or the Hub; a tower's configuration also out of a whole model's file."""
        return cls.from_dict(cls._select(read_config(name_or_path, revision, local_files_only)))

    @classmethod
    def _select(cls, d: dict[str, Any]) -> dict[str, Any]:
        return d

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes `config.json` into `directory`, which is made if need be."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(directory) / "config.json", self.to_json_string().encode())

    def to_json_string(self) -> str:
        """Returns the text of `config.json`."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def replace(self: C, **changes: Any) -> C:
        """Returns a copy with the given fields changed."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class SiglipTextConfig(_Config):
    """The text tower. `projection_size` is the width of the embedding and defaults to `hidden_size`.

    The special-token ids are relics of CLIP that the files carry; the tokenizer's real ids are used everywhere.
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
        """Width of the text embedding."""
        return self.projection_size or self.hidden_size

    @classmethod
    def _select(cls, d: dict[str, Any]) -> dict[str, Any]:
        return _sub_config(d, "text_config", cls.model_type)


@dataclasses.dataclass(frozen=True)
class Siglip2TextConfig(SiglipTextConfig):
    """The text tower of a model of variable resolution; only the name of its type is another."""

    model_type: ClassVar[str] = "siglip2_text_model"


@dataclasses.dataclass(frozen=True)
class _VisionConfig(_Config):
    """What both image towers have."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    patch_size: int = 16  # pixels, both sides
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    vision_use_head: bool = True

    @classmethod
    def _select(cls, d: dict[str, Any]) -> dict[str, Any]:
        return _sub_config(d, "vision_config", cls.model_type)


@dataclasses.dataclass(frozen=True)
class SiglipVisionConfig(_VisionConfig):
    """The image tower. Pixels beyond a whole number of patches are cut off, as the reference does."""

    image_size: int = 224  # pixels, both sides

    model_type: ClassVar[str] = "siglip_vision_model"

    def __post_init__(self) -> None:
        check_tower(self, ("num_channels", "image_size", "patch_size"))
        if self.patch_size > self.image_size:
            raise ValueError(
                f"patch_size must be at most image_size, got patch_size={self.patch_size}, image_size={self.image_size}"
            )

    @property
    def num_patches(self) -> int:
        """Rows of the position table."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class Siglip2VisionConfig(_VisionConfig):
    """The image tower of variable resolution (NaFlex): `num_patches` rows, a square, in the position table."""

    num_patches: int = 256

    model_type: ClassVar[str] = "siglip2_vision_model"

    def __post_init__(self) -> None:
        check_tower(self, ("num_channels", "num_patches", "patch_size"))
        if math.isqrt(self.num_patches) ** 2 != self.num_patches:
            raise ValueError(f"num_patches must be a square number, got {self.num_patches}")


@dataclasses.dataclass(frozen=True)
class SiglipConfig(_Config):
    """Both towers; also the configuration of `SiglipForImageClassification`, which reads the label fields.

    `num_labels` follows from `id2label` where that is given, and is 2 where neither is, as in the reference.
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
            raise ValueError(f"problem_type must be None or one of {PROBLEM_TYPES}, got {self.problem_type!r}")
        id2label = labels(self.num_labels, self.id2label)
        object.__setattr__(self, "num_labels", len(id2label))
        object.__setattr__(self, "id2label", id2label)
        object.__setattr__(self, "label2id", self.label2id or {label: i for i, label in id2label.items()})

    @classmethod
    def from_variant(cls, name: str) -> "SiglipConfig":
        """Returns the configuration of a released checkpoint, by its Hub name or npz file; see `siglip_jax.configs.variants`.

        A variant of variable resolution gives a `Siglip2Config`.

        Raises:
          ValueError: if there is no such variant.
        """
        variant = find(name)
        d = {"text_config": dict(variant.text), "vision_config": dict(variant.vision)}
        return CONFIGS[variant.model_type].from_dict(d)

    def to_dict(self) -> dict[str, Any]:
        d = super().to_dict()
        d["text_config"], d["vision_config"] = self.text_config.to_dict(), self.vision_config.to_dict()
        del d["num_labels"]  # follows from id2label, and the reference does not write it either
        if d["id2label"] == {0: "LABEL_0", 1: "LABEL_1"}:
            del d["id2label"], d["label2id"]
        else:
            d["id2label"] = {str(k): v for k, v in d["id2label"].items()}
        if d["problem_type"] is None:
            del d["problem_type"]
        return d

    def replace(self, **changes: Any) -> "SiglipConfig":
        if "num_labels" in changes:
            changes = {"id2label": None, "label2id": None} | changes
        elif "id2label" in changes:
            changes = {"num_labels": None, "label2id": None} | changes
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class Siglip2Config(SiglipConfig):
    """Both towers of a model of variable resolution."""

    model_type: ClassVar[str] = "siglip2"
    tower_classes: ClassVar[tuple[type, type]] = (Siglip2TextConfig, Siglip2VisionConfig)


TextConfig = SiglipTextConfig
VisionConfig = SiglipVisionConfig | Siglip2VisionConfig
Config = SiglipConfig | TextConfig | VisionConfig

_CLASSES = (SiglipConfig, SiglipTextConfig, SiglipVisionConfig, Siglip2Config, Siglip2TextConfig, Siglip2VisionConfig)
CONFIGS: dict[str, Any] = {cls.model_type: cls for cls in _CLASSES}


def config_from_dict(d: Mapping[str, Any]) -> Config:
    """Returns the configuration of the class that `model_type` names.

    Raises:
      ValueError: if it is not one of SigLIP's, or holds an impossible value.
    """
    return CONFIGS.get(str(d.get("model_type", SiglipConfig.model_type)), SiglipConfig).from_dict(d)


def _sub_config(d: dict[str, Any], name: str, model_type: str) -> dict[str, Any]:
    if d.get("model_type") == model_type:
        return d
    part = d.get(name)
    whole = d.get("model_type") == model_type.split("_")[0]
    # Models that contain an image tower of SigLIP, such as PaliGemma, have types of their own.
    if whole or (isinstance(part, Mapping) and part.get("model_type") == model_type):
        if part is not None and not isinstance(part, Mapping):
            raise ValueError(f"config.json: expected {name} to be an object, found a {type(part).__name__}")
        return dict(part or {})
    raise ValueError(_wrong_type(f"{model_type.split('_')[0]} or {model_type}", d.get("model_type")))


def _wrong_type(expected: str, found: Any) -> str:
    cls = CONFIGS.get(found) if isinstance(found, str) else None
    hint = f"; that is one for {cls.__name__}" if cls else ""
    return f"config.json: expected model_type {expected!r}, found {found!r}; use a SigLIP checkpoint{hint}"
