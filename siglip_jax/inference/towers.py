"""What the engine runs of a model: both towers, one of them, or the image tower and the classifier."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Array

from siglip_jax.checkpoints.keymap import ARCHITECTURES, CLASSIFIER, TEXT, VISION
from siglip_jax.models import Siglip2VisionModel, SiglipVisionModel
from siglip_jax.models.classifier import ImageClassifier
from siglip_jax.models.naflex import Siglip2ForImageClassification
from siglip_jax.models.pretrained import PretrainedModule
from siglip_jax.models.siglip import TwoTowers

LOGITS = ("logit_scale", "logit_bias")
_WORDS = {TEXT: "a text tower", VISION: "an image tower", CLASSIFIER: "a classifier"}


def parts_of(model: PretrainedModule) -> Sequence[str]:
    """Returns the top-level names of a model's parameters that the engine runs, of `text_model`, `vision_model` and
    `classifier`."""
    name = next(cls.__name__ for cls in type(model).__mro__ if cls.__name__ in ARCHITECTURES)
    return [part for part in ARCHITECTURES[name] if part in _WORDS]


def check_part(model: PretrainedModule, part: str) -> None:
    """Raises a `ValueError` if a model lacks a part.

    Args:
      model: linen module.
      part: "text_model", "vision_model" or "classifier".
    """
    if part not in parts_of(model):
        raise ValueError(f"the model must have {_WORDS[part]}, got a {type(model).__name__}; load another checkpoint")


def check_whole(model: PretrainedModule) -> None:
    """Raises a `ValueError` if a model cannot compare images with texts."""
    if not isinstance(model, TwoTowers):
        raise ValueError(
            f"the model must have both towers to compare images with texts, got a {type(model).__name__}; load another"
            " checkpoint"
        )


def parameters_of(model: PretrainedModule, part: str) -> Sequence[str]:
    """Returns the top-level names of the parameters that embedding with a tower reads."""
    return (part, *LOGITS) if isinstance(model, TwoTowers) else (part,)


def features(model: PretrainedModule, part: str) -> tuple[PretrainedModule, Any]:
    """Returns the module and its method that embed with a tower: a name, or a function of the module and the inputs."""
    if isinstance(model, TwoTowers):
        return model, f"get_{'image' if part == VISION else 'text'}_features"
    if isinstance(model, ImageClassifier):
        tower = Siglip2VisionModel if isinstance(model, Siglip2ForImageClassification) else SiglipVisionModel
        fields = {name: getattr(model, name) for name in ("dtype", "param_dtype", "attn_implementation", "mesh")}
        model = tower(model.config.vision_config, **fields)
    return model, embedding


def embedding(model: Any, *inputs: Array) -> Array:
    """Returns the embeddings of a tower's outputs, not normalised."""
    return model(*inputs).embedding


def label_logits(model: Any, *inputs: Array) -> Array:
    """Returns the logits of a classifier."""
    return model(*inputs).logits
